"""Many pictures → a table of explanations: units of work, their Parquet parts, and back.

One row for each picture and layer: the pooled caption, the captions of all locations (row-major),
and a map for each query. A unit is a shard or a handful of files; its part appears whole or not at
all, and what cannot be explained stands in `errors` with its reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from devil.config import DecodingConfig
from devil.data.webdataset import IMAGE_SUFFIXES, list_shards, read_shard
from devil.describing import explain_images
from devil.errors import ConfigError, DataError, ImageError
from devil.explanation import Caption, Explanation, LayerExplanation
from devil.features import ERROR_SCHEMA, renamed
from devil.images import open_image
from devil.model import DeViL
from devil.saliency import Calibration, tokenize_queries

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("region", pa.list_(pa.float64(), 4)),
        ("layer", pa.string()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("caption", pa.string()),
        ("log_probability", pa.float64()),
        ("tokens", pa.int32()),
        ("location_captions", pa.list_(pa.string())),
        ("location_log_probabilities", pa.list_(pa.float64())),
        ("location_tokens", pa.list_(pa.int32())),
        ("saliency", pa.map_(pa.string(), pa.list_(pa.float32()))),
        ("calibration", pa.string()),
        ("model", pa.string()),
        ("version", pa.string()),
    ]
)


class Unit(NamedTuple):
    """A piece of work: one shard, or some picture files."""

    name: str
    paths: tuple[str, ...]


class Picture(NamedTuple):
    """One picture of a unit, still encoded."""

    key: str
    source: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is asked of each picture."""

    queries: tuple[str, ...] = ()
    """Words or phrases; each gets a map per layer."""
    layers: tuple[str, ...] = ()
    """Layer names, or `all` for all at once; empty: each layer, then all."""
    dense: bool = True
    """Write a caption for every location."""
    calibration: Calibration = "pmi"
    """How the language model's own preferences are taken out of the maps."""
    prompt: str = ""
    """Text that queries are conditioned on, not scored."""
    smoothing: int = 1
    """Odd kernel of the average pooling before a location is read; 1 is none."""
    batch_size: int = 8
    """Pictures explained at once."""


def list_units(images: str, *, files_per_unit: int = 8) -> list[Unit]:
    """Units from a folder of pictures (searched deeply), a folder or glob of shards, or one file.

    Raises:
        DataError: nothing matches.
    """
    fs, path = fsspec.core.url_to_fs(images)
    if images.endswith(".tar") or (fs.isdir(path) and fs.glob(path.rstrip("/") + "/*.tar")):
        return [Unit(PurePosixPath(p).name.removesuffix(".tar"), (p,)) for p in list_shards(images)]
    if any(mark in images for mark in "*?["):
        found = fs.glob(path)
    else:
        found = fs.find(path) if fs.isdir(path) else [path] if fs.exists(path) else []
    files = sorted(p for p in found if p.lower().rpartition(".")[2] in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"no pictures at {images}; give a folder or glob of {', '.join(IMAGE_SUFFIXES)} "
            "files, or webdataset shards."
        )
    names = [fs.unstrip_protocol(p) if "://" in images else p for p in files]
    return [
        Unit(f"{i // files_per_unit:05d}", tuple(names[i : i + files_per_unit]))
        for i in range(0, len(names), files_per_unit)
    ]


def pictures(unit: Unit) -> Iterator[Picture]:
    """A unit's pictures.

    Raises:
        DataError: a shard is damaged; the pictures before the damage come first.
    """
    for path in unit.paths:
        if path.endswith(".tar"):
            for sample in read_shard(path):
                yield Picture(sample.key, path, sample.image or b"")
        else:
            fs, name = fsspec.core.url_to_fs(path)
            yield Picture(PurePosixPath(path).stem, path, fs.cat_file(name))


class Auditor:
    """Explains units into Parquet parts; callable and testable without a cluster."""

    def __init__(
        self,
        model: DeViL,
        output: str,
        config: AuditConfig,
        decoding: DecodingConfig | None = None,
    ) -> None:
        """Take a loaded model and the folder of the parts, which must exist."""
        self.model, self.config, self.decoding = model, config, decoding
        self.fs, self.path = fsspec.core.url_to_fs(output.rstrip("/"))

    def __call__(self, unit: Unit) -> dict[str, Any]:
        """Explain one unit, unless its part is there; returns its counts."""
        part = f"{self.path}/part-{unit.name}.parquet"
        if self.fs.exists(part):
            with self.fs.open(part, "rb") as file:
                rows = pq.read_table(file, columns=["key"]).num_rows
            return {"unit": unit.name, "rows": rows, "errors": 0, "skipped": True}
        explanations: list[Explanation] = []
        failures: list[dict[str, str]] = []
        stream = self._decoded(unit, failures)
        while batch := list(islice(stream, self.config.batch_size)):
            explanations += self._explain(batch)
        with renamed(self.fs, f"{self.path}/errors/part-{unit.name}.parquet") as name:
            self._write(name, pa.Table.from_pylist(failures, schema=ERROR_SCHEMA))
        table = explanations_table(explanations)
        with renamed(self.fs, part) as name:
            self._write(name, table)
        counts = {"rows": table.num_rows, "errors": len(failures)}
        return {"unit": unit.name, "skipped": False, **counts}

    def _write(self, name: str, table: pa.Table) -> None:
        with self.fs.open(name, "wb") as file:
            pq.write_table(table, file, compression="zstd")

    def _decoded(
        self, unit: Unit, failures: list[dict[str, str]]
    ) -> Iterator[tuple[Picture, Image.Image]]:
        """Pictures that can be read; the others go to `failures`."""
        stream = pictures(unit)
        while True:
            try:
                picture = next(stream)
            except StopIteration:
                return
            except (DataError, OSError) as error:
                failures.append(_failure("", unit.name, "read", error))
                return
            try:
                yield picture, open_image(picture.content)
            except ImageError as error:
                failures.append(_failure(picture.key, picture.source, "decode", error))

    def _explain(self, batch: Sequence[tuple[Picture, Image.Image]]) -> list[Explanation]:
        config = self.config
        return explain_images(
            self.model,
            [image for _, image in batch],
            sources=[picture.key for picture, _ in batch],
            layers=config.layers or None,
            queries=config.queries,
            dense=config.dense,
            calibration=config.calibration,
            prompt=config.prompt,
            smoothing=config.smoothing,
            decoding=self.decoding,
        )


def _failure(key: str, source: str, stage: str, error: Exception) -> dict[str, str]:
    row = {"key": key, "source": source, "stage": stage}
    return row | {"error": type(error).__name__, "message": str(error)}


def explanations_table(explanations: Sequence[Explanation]) -> pa.Table:
    """One row for each picture and layer."""
    rows = [
        _row(explanation, layer)
        for explanation in explanations
        for layer in explanation.layers.values()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(explanation: Explanation, layer: LayerExplanation) -> dict[str, Any]:
    cells = [cell for row in layer.captions or () for cell in row]
    caption = layer.caption
    return {
        "key": explanation.source,
        "width": explanation.image_size[0],
        "height": explanation.image_size[1],
        "region": list(explanation.region),
        "layer": layer.layer,
        "rows": layer.grid[0],
        "columns": layer.grid[1],
        "caption": caption.text if caption else None,
        "log_probability": caption.log_probability if caption else None,
        "tokens": caption.tokens if caption else None,
        "location_captions": [c.text for c in cells] if layer.captions else None,
        "location_log_probabilities": (
            [c.log_probability for c in cells] if layer.captions else None
        ),
        "location_tokens": [c.tokens for c in cells] if layer.captions else None,
        "saliency": [(query, grid.ravel().tolist()) for query, grid in layer.saliency.items()],
        "calibration": explanation.calibration,
        "model": explanation.model,
        "version": explanation.version,
    }


def table_explanations(table: pa.Table) -> Iterator[Explanation]:
    """Explanations (without their pictures) from rows of `explanations_table`."""
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_key.setdefault(row["key"], []).append(row)
    for rows in by_key.values():
        first = rows[0]
        yield Explanation(
            image_size=(first["width"], first["height"]),
            region=tuple(first["region"]),
            layers={row["layer"]: _layer(row) for row in rows},
            queries=tuple(query for query, _ in first["saliency"]),
            calibration=first["calibration"],
            model=first["model"],
            version=first["version"],
            source=first["key"],
        )


def _layer(row: dict[str, Any]) -> LayerExplanation:
    height, width = row["rows"], row["columns"]
    cells = None
    if row["location_captions"] is not None:
        listed = [
            Caption(text=text, log_probability=score, tokens=tokens)
            for text, score, tokens in zip(
                row["location_captions"],
                row["location_log_probabilities"],
                row["location_tokens"],
                strict=True,
            )
        ]
        cells = tuple(tuple(listed[r * width : (r + 1) * width]) for r in range(height))
    caption = None
    if row["caption"] is not None:
        caption = Caption(
            text=row["caption"], log_probability=row["log_probability"], tokens=row["tokens"]
        )
    return LayerExplanation(
        layer=row["layer"],
        grid=(height, width),
        caption=caption,
        captions=cells,
        saliency={
            query: np.array(values, np.float32).reshape(height, width)
            for query, values in row["saliency"]
        },
    )


def check_request(model: DeViL, config: AuditConfig) -> None:
    """Refuse unknown layers and empty queries before any picture is read.

    Raises:
        LayerError, QueryError, ConfigError: with what is allowed.
    """
    if config.batch_size < 1:
        raise ConfigError(f"batch_size is {config.batch_size}; allowed: at least 1.")
    model.chosen_layers(config.layers or None)
    tokenize_queries(model.language_model, config.queries, prompt=config.prompt)
