"""Model + pictures + queries → Parquet of explanations and an HTML report, with Ray Data.

    python pipelines/audit.py runs/demo/model photos/ --output runs/audit --audit.queries dog cat

One row for each picture and layer goes to `part-*.parquet`; pictures that cannot be read stand in
`errors/`; `index.html` shows the first of them. The same command goes on where a run was stopped.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import torch
import tyro
from tqdm import tqdm

from devil.audit import (
    AuditConfig,
    Auditor,
    Unit,
    check_request,
    list_units,
    pictures,
    table_explanations,
)
from devil.config import DecodingConfig
from devil.errors import DataError, ImageError
from devil.explanation import Explanation
from devil.images import open_image
from devil.model import DeViL
from devil.report.page import write_report
from pipelines.cli import run_script
from pipelines.pool import PoolConfig, over_pool
from pipelines.runs import claim_run

logger = logging.getLogger("audit")

RUN = "audit.json"


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


class AuditWorker:
    """One actor's model."""

    def __init__(
        self, model: str, output: str, config: AuditConfig, decoding: DecodingConfig
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = DeViL.from_pretrained(model, device=device)
        self.auditor = Auditor(loaded, output, config, decoding)

    def __call__(self, unit: str) -> dict[str, Any]:
        """Explain one unit, given as JSON (Ray Data's columns hold no tuples)."""
        name, paths = json.loads(unit)
        return self.auditor(Unit(name, tuple(paths)))


def audit(options: AuditOptions) -> Path:
    """Explain all pictures and write the report.

    Returns:
        The report's path.

    Raises:
        ModelFolderError, LayerError, QueryError, DataError: an input cannot be used.
        ConfigError: the output folder belongs to an audit with other options.
    """
    units = list_units(options.images)
    model = DeViL.from_pretrained(options.model)
    check_request(model, options.audit)
    model_name, version = model.name, model.version
    del model
    output = Path(options.output)
    (output / "errors").mkdir(parents=True, exist_ok=True)
    claim_run(output / RUN, _run_description(options, version))
    arguments = {
        "model": _absolute(options.model),
        "output": str(output.resolve()),
        "config": options.audit,
        "decoding": options.decoding,
    }
    failed = 0
    with tqdm(total=len(units), unit="unit", desc="audit", mininterval=1) as bar:
        work = [json.dumps(unit) for unit in _absolute_units(units)]
        for record in over_pool(work, AuditWorker, arguments, options.pool):
            failed += record["errors"]
            bar.set_postfix_str(f"{failed} pictures failed")
            bar.update()
    notes = [f"Model {model_name}, version {version}. {failed} pictures could not be read."]
    return write_report(
        output, title=options.title, explanations=list(audited(options)), notes=notes
    )


def audited(options: AuditOptions) -> Iterator[Explanation]:
    """The first `report_images` explanations of a finished audit, with their pictures."""
    yield from _first(list_units(options.images), Path(options.output), options.report_images)


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _absolute_units(units: list[Unit]) -> list[Unit]:
    return [Unit(u.name, tuple(_absolute(path) for path in u.paths)) for u in units]


def _run_description(options: AuditOptions, version: str) -> dict[str, Any]:
    """What decides an audit's result."""
    return {
        "model": version,
        "images": _absolute(options.images),
        "audit": asdict(replace(options.audit, batch_size=1)),
        "max_new_tokens": options.decoding.max_new_tokens,
    }


def _first(units: list[Unit], output: Path, count: int) -> Iterator[Explanation]:
    """The first explanations, with their pictures opened again."""
    left = count
    for unit in units:
        with fsspec.open(str(output / f"part-{unit.name}.parquet"), "rb") as file:
            by_key = {e.source: e for e in table_explanations(pq.read_table(file))}
        stream = pictures(unit)
        while left:
            try:
                picture = next(stream)
                image = open_image(picture.content)
            except StopIteration:
                break
            except ImageError:
                continue
            except DataError:
                break
            if picture.key in by_key:
                left -= 1
                yield replace(by_key[picture.key], image=image)
        if not left:
            return


if __name__ == "__main__":
    run_script(AuditOptions, audit, __doc__ or "")
