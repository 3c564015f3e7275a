"""Model + pictures + queries → Parquet of explanations and an HTML report, with Ray Data.

    python pipelines/audit.py runs/demo/model photos/ --output runs/audit --audit.queries dog cat

One row for each picture and layer goes to `part-*.parquet`; pictures that cannot be read stand in
`errors/`; `index.html` shows the first of them. The same command goes on where a run was stopped,
and explains what has been added or has grown since.
"""

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import tyro
from tqdm import tqdm

from devil.audit import AuditConfig, Auditor, check_request, table_explanations
from devil.audit_parts import Part, count, finished_parts
from devil.config import DecodingConfig
from devil.data.pictures import Picture, Unit, list_units, pictures
from devil.data.webdataset import expected_samples
from devil.explanation import Explanation
from devil.files import write_json
from devil.lock import Lock
from devil.model import DeViL
from devil.report.page import write_report
from pipelines.cli import absolute, run_script
from pipelines.pool import PoolConfig, over_pool, own_device
from pipelines.runs import claim_run

logger = logging.getLogger("audit")

RUN, PLAN, LOCK = "audit.json", "plan.json", "audit.lock"
STALE_MINUTES = 2.0
"""A job on another machine that has been silent for longer is gone."""
FORMAT_VERSION = 3
"""Of the parts; an audit does not go on with those of another."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Options of an audit."""

    model: tyro.conf.Positional[str]
    """Model folder or hub id."""
    images: tyro.conf.Positional[str]
    """Folder or glob of pictures, or webdataset shards."""
    output: str
    """Folder of the Parquet parts and the report."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    report_images: int = 50
    """Pictures shown in the report, the first ones."""
    title: str = "DeViL audit"
    """Title of the report."""
    inside: str | None = None
    """Local folder that pictures must really lie in; those that links lead elsewhere are errors."""
    whole_paths: bool = True
    """Write whole paths into the tables; else those below the folder of `images`."""


class AuditWorker:
    """One actor's model."""

    def __init__(
        self,
        model: str,
        output: str,
        config: AuditConfig,
        decoding: DecodingConfig,
        inside: str | None,
        whole_paths: bool,
    ) -> None:
        device = own_device()
        loaded = DeViL.from_pretrained(model, device=device)
        self.auditor = Auditor(
            loaded, output, config, decoding, inside=inside, whole_paths=whole_paths
        )

    def __call__(self, unit: str) -> dict[str, Any]:
        """Explain one unit, given as JSON (Ray Data's columns hold no tuples)."""
        return self.auditor(Unit.from_json(unit))


def audit(options: AuditOptions) -> Path:
    """Explain all pictures and write the report.

    Returns:
        The report's path.

    Raises:
        ModelFolderError, LayerError, QueryError, DataError: an input cannot be used.
        ConfigError: the output folder belongs to an audit with other options.
        LockError: another audit into this folder is running.
    """
    output = Path(options.output)
    list_units(options.images)
    model = DeViL.from_pretrained(options.model)
    check_request(model, options.audit, options.decoding)
    model_name, version = model.name, model.version
    del model
    # A job that was lost is started anew at once, on another machine, and waits for its lock.
    with Lock(output / LOCK, stale_minutes=STALE_MINUTES, patient=True):
        return _audit(options, output, model_name, version)


def _audit(options: AuditOptions, output: Path, model_name: str, version: str) -> Path:
    claim_run(output / RUN, _run_description(options, version))
    (output / "errors").mkdir(exist_ok=True)
    parts = finished_parts(str(output))
    units = _units(options.images, parts)
    known = _known_pictures(units, parts, options.inside)
    write_json(output / PLAN, {"pictures": known, "units": len(units)})
    _explain([unit for unit in units if not _is_done(unit, parts)], options)
    parts = finished_parts(str(output))
    counts = count(parts.values())
    reasons = "".join(f"; {number} {reason}" for reason, number in counts.failures.items())
    notes = [
        f"Model {model_name}, version {version}.",
        f"{counts.explained} pictures are explained, {counts.failed} pictures could not be read"
        f"{reasons}.",
        *_gone(units, parts),
    ]
    for note in notes:
        logger.info(note)
    report = write_report(
        output, title=options.title, explanations=list(audited(options)), notes=notes
    )
    logger.info("report: %s", report)
    return report


def audited(options: AuditOptions) -> Iterator[Explanation]:
    """The first `report_images` explanations of a finished audit, with their pictures."""
    parts = finished_parts(options.output)
    units = [unit for unit in _units(options.images, parts) if _is_done(unit, parts)]
    yield from _first(units, options)


def _units(images: str, parts: Mapping[str, Part]) -> list[Unit]:
    return list_units(images, done={name: part.files for name, part in parts.items()})


def _is_done(unit: Unit, parts: Mapping[str, Part]) -> bool:
    part = parts.get(unit.name)
    return part is not None and part.holds(unit.files, unit.sizes)


def _known_pictures(units: list[Unit], parts: Mapping[str, Part], inside: str | None) -> int | None:
    """How many pictures there are, those of earlier runs included; None: a shard does not say."""
    left = {unit.name: unit for unit in units if not _is_done(unit, parts)}
    done = count(part for name, part in parts.items() if name not in left)
    total = done.explained + done.failed
    for unit in left.values():
        shard = unit.paths[0].endswith(".tar")
        expected = expected_samples(unit.paths[0], inside) if shard else len(unit.files)
        if expected is None:
            return None
        total += expected
    return total


def _explain(units: list[Unit], options: AuditOptions) -> None:
    """Have the units explained into their parts."""
    if not units:
        return
    arguments = {
        "model": _absolute(options.model),
        "output": absolute(options.output),
        "config": options.audit,
        "decoding": options.decoding,
        "inside": options.inside,
        "whole_paths": options.whole_paths,
    }
    failed = 0
    with tqdm(total=len(units), unit="unit", desc="audit", mininterval=1) as bar:
        work = [json.dumps(unit) for unit in units]
        for record in over_pool(work, AuditWorker, arguments, options.pool):
            failed += record["errors"]
            bar.set_postfix_str(f"{failed} pictures failed")
            bar.update()


def _gone(units: list[Unit], parts: Mapping[str, Part]) -> list[str]:
    """A note on files that have been audited and are not there any more."""
    here = {file for unit in units for file in unit.files}
    gone = sorted({file for part in parts.values() for file in part.files} - here)
    if not gone:
        return []
    shown = ", ".join(gone[:5]) + (", …" if len(gone) > 5 else "")
    return [
        f"{len(gone)} files of an earlier run are gone; what was found about them stays in the "
        f"table: {shown}"
    ]


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _run_description(options: AuditOptions, version: str) -> dict[str, Any]:
    """What decides an audit's result."""
    return {
        "format": FORMAT_VERSION,
        "model": version,
        "images": absolute(options.images),
        "audit": asdict(replace(options.audit, batch_size=1)),
        "max_new_tokens": options.decoding.max_new_tokens,
        "whole_paths": options.whole_paths,
    }


def _first(units: list[Unit], options: AuditOptions) -> Iterator[Explanation]:
    """The first explanations, with their pictures opened again."""
    output, left = Path(options.output), options.report_images
    for unit in units:
        if not left:
            return
        waiting: dict[str | None, deque[Explanation]] = {}
        with fsspec.open(str(output / f"part-{unit.name}.parquet"), "rb") as file:
            for explanation in table_explanations(pq.read_table(file)):
                waiting.setdefault(explanation.source, deque()).append(explanation)
        for picture in pictures(unit, inside=options.inside, max_pixels=options.audit.max_pixels):
            if left and isinstance(picture, Picture) and waiting.get(picture.key):
                left -= 1
                yield replace(waiting[picture.key].popleft(), image=picture.image)


if __name__ == "__main__":
    run_script(AuditOptions, audit, __doc__ or "")
