"""Many pictures → a table of explanations: units of work, their Parquet parts, and back.

One row for each picture and layer: the pooled caption, the captions of all locations (row-major),
and a map for each query. A unit (`devil.data.pictures`) is a shard or a handful of files; its part
appears whole or not at all, its footer says which files it was made from, and what cannot be
explained stands in `errors` with its reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from devil.audit_parts import Part, read_part
from devil.config import DecodingConfig
from devil.data.pictures import Failure, Picture, Unit, pictures
from devil.data.sample import unicode_text
from devil.decoding import greedy_captions
from devil.describing import explain_images
from devil.errors import ConfigError
from devil.explanation import Caption, Explanation, LayerExplanation
from devil.features import ERROR_SCHEMA, renamed
from devil.model import DeViL
from devil.picture import MAX_PIXELS
from devil.pooling import smooth
from devil.saliency import Calibration, check_calibration, tokenize_queries

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
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
    max_pixels: int = MAX_PIXELS
    """Larger pictures are errors, found before they are decoded."""
    batch_size: int = 8
    """Pictures explained at once."""


class Auditor:
    """Explains units into Parquet parts; callable and testable without a cluster."""

    def __init__(
        self,
        model: DeViL,
        output: str,
        config: AuditConfig,
        decoding: DecodingConfig | None = None,
        *,
        inside: str | None = None,
        whole_paths: bool = True,
    ) -> None:
        """Take a loaded model and the folder of the parts, which must exist.

        Args:
            model: explains.
            output: folder of the parts.
            config: what is asked.
            decoding: of captions.
            inside: local folder, without links, that pictures must really lie in; those that links
                lead elsewhere are errors.
            whole_paths: write sources as whole paths, or else below the folder that was asked for.
        """
        self.model, self.config, self.decoding = model, config, decoding
        self.inside, self.whole_paths = inside, whole_paths
        self.fs, self.path = fsspec.core.url_to_fs(output.rstrip("/"))

    def __call__(self, unit: Unit) -> dict[str, Any]:
        """Explain one unit, unless its part is there; returns its counts."""
        part = f"{self.path}/part-{unit.name}.parquet"
        if self.fs.exists(part):
            found = read_part(self.fs, part)
            if found.files == unit.files and found.holds(unit.files, unit.sizes):
                return {"unit": unit.name, "errors": found.errors, "skipped": True}
        tables, failures = [explanations_table([])], []
        names = {} if self.whole_paths else _names(unit)
        explained, readable = 0, self._readable(unit, failures, names)
        while batch := list(islice(readable, self.config.batch_size)):
            sources = [names.get(picture.source, picture.source) for picture in batch]
            tables.append(explanations_table(self._explain(batch), sources))
            explained += len(batch)
        with renamed(self.fs, f"{self.path}/errors/part-{unit.name}.parquet") as name:
            rows = [failure._asdict() for failure in failures]
            self._write(name, pa.Table.from_pylist(rows, schema=ERROR_SCHEMA))
        reasons = Counter(f"{failure.stage} {failure.error}" for failure in failures)
        footer = Part(unit.files, explained, len(failures), reasons, unit.sizes).metadata()
        with renamed(self.fs, part) as name:
            self._write(name, pa.concat_tables(tables).replace_schema_metadata(footer))
        return {"unit": unit.name, "errors": len(failures), "skipped": False}

    def _write(self, name: str, table: pa.Table) -> None:
        with self.fs.open(name, "wb") as file:
            pq.write_table(table, file, compression="zstd")

    def _readable(
        self, unit: Unit, failures: list[Failure], names: Mapping[str, str]
    ) -> Iterator[Picture]:
        """Pictures that can be read; the others go to `failures`, under other names for paths."""
        for picture in pictures(unit, inside=self.inside, max_pixels=self.config.max_pixels):
            if isinstance(picture, Picture):
                yield picture
                continue
            message = picture.message
            for path, name in names.items():
                message = message.replace(path, name)
            source = names.get(picture.source, picture.source)
            failures.append(picture._replace(source=source, message=message))

    def _explain(self, batch: Sequence[Picture]) -> list[Explanation]:
        config = self.config
        return explain_images(
            self.model,
            [picture.image for picture in batch],
            sources=[picture.key for picture in batch],
            layers=config.layers or None,
            queries=config.queries,
            dense=config.dense,
            calibration=config.calibration,
            prompt=config.prompt,
            smoothing=config.smoothing,
            decoding=self.decoding,
        )


def _names(unit: Unit) -> dict[str, str]:
    """A unit's paths as they were asked for, by the whole ones."""
    return dict(zip(map(unicode_text, unit.paths), unit.files, strict=True))


def explanations_table(
    explanations: Sequence[Explanation], sources: Sequence[str] | None = None
) -> pa.Table:
    """One row for each picture and layer; `sources` are the files or shards they came from."""
    rows = [
        _row(explanation, layer, source)
        for explanation, source in zip(
            explanations, sources or [None] * len(explanations), strict=True
        )
        for layer in explanation.layers.values()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(explanation: Explanation, layer: LayerExplanation, source: str | None) -> dict[str, Any]:
    cells = [cell for row in layer.captions or () for cell in row]
    caption = layer.caption
    return {
        "key": explanation.source,
        "source": source,
        "width": explanation.image_size[0],
        "height": explanation.image_size[1],
        "region": list(explanation.region),
        "layer": layer.layer,
        "rows": layer.grid[0],
        "columns": layer.grid[1],
        "caption": caption.text if caption else None,
        "log_probability": caption.log_probability if caption else None,
        "tokens": caption.tokens if caption else None,
        "location_captions": [c and c.text for c in cells] if layer.captions else None,
        "location_log_probabilities": (
            [c and c.log_probability for c in cells] if layer.captions else None
        ),
        "location_tokens": [c and c.tokens for c in cells] if layer.captions else None,
        "saliency": [(query, grid.ravel().tolist()) for query, grid in layer.saliency.items()],
        "calibration": explanation.calibration,
        "model": explanation.model,
        "version": explanation.version,
    }


def table_explanations(table: pa.Table) -> Iterator[Explanation]:
    """Explanations (without their pictures) from rows of `explanations_table`, or of several.

    Pictures of equal keys are told apart by their sources, and in one shard by their order.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    by_picture: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        name = (row["key"], row["source"], row["layer"])
        by_picture.setdefault((row["key"], row["source"], seen[name]), []).append(row)
        seen[name] += 1
    for rows in by_picture.values():
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
            None if text is None else Caption(text=text, log_probability=score, tokens=tokens)
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


def check_request(
    model: DeViL, config: AuditConfig, decoding: DecodingConfig | None = None
) -> None:
    """Refuse what cannot be asked of this model before any picture is read.

    Raises:
        LayerError, QueryError, ConfigError: with what is allowed.
    """
    if config.batch_size < 1:
        raise ConfigError(f"batch_size is {config.batch_size}; allowed: at least 1.")
    model.chosen_layers(config.layers or None)
    check_calibration(config.calibration, len(config.queries))
    tokenize_queries(model.language_model, config.queries, prompt=config.prompt)
    smooth(torch.zeros(1, 1, 1, 1), config.smoothing)
    length, width = model.translator.config.prefix_length, model.language_model.embedding_width
    greedy_captions(model.language_model, torch.zeros(0, length, width), decoding)
