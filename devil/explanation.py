"""What a model has learned, in words, about one picture: captions and saliency for every layer.

The result type of the whole project. It is plain data (numbers, text, NumPy arrays): it needs no
torch, survives pickling, and round-trips through JSON without losing a bit. Making explanations is
left to `devil.describing` and `devil.saliency`; drawing them to `devil.report`, imported on demand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from devil.errors import DataError

FORMAT_VERSION = 2
"""Written into every JSON document; a reader refuses any other."""

CALIBRATIONS = ("none", "pmi", "mean", "contrast")
"""What may have been subtracted from the raw log-probabilities of a saliency map."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A decoded sentence and how sure the language model is of it."""

    text: str
    """The caption, without special tokens."""
    log_probability: float
    """Sum over the generated tokens, the end token included, in nats."""
    tokens: int
    """How many tokens that sum runs over."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.log_probability):
            raise DataError(
                f"caption {self.text!r} has log-probability {self.log_probability}; "
                "it must be finite"
            )
        if self.tokens < 1:
            raise DataError(
                f"caption {self.text!r} has {self.tokens} tokens; the end token alone makes 1"
            )

    @property
    def token_probability(self) -> float:
        """Geometric mean of the token probabilities, in [0, 1]; comparable between lengths."""
        return min(1.0, math.exp(self.log_probability / self.tokens))


class WordScore(NamedTuple):
    """A word at a location."""

    word: str
    score: float
    """Log-probability in nats, or how far it is above that for the layer's mean feature."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerExplanation:
    """One layer: the caption of its mean feature, and captions and saliency on its grid."""

    layer: str
    """Module name, such as "blocks.11", or "all" for all layers at once."""
    grid: tuple[int, int]
    """Rows and columns of the layer's map."""
    caption: Caption | None
    """Of the pooled layer."""
    captions: tuple[tuple[Caption | None, ...], ...] | None
    """One per location, [rows][columns]; None where none was asked for."""
    saliency: dict[str, np.ndarray]
    """Query to float32 (rows, columns), in nats."""
    words: tuple[tuple[tuple[WordScore, ...] | None, ...], ...] | None = None
    """The likeliest words of each location, best first; None where none were asked for."""

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if rows < 1 or columns < 1:
            raise DataError(
                f"layer {self.layer!r} has grid {self.grid}; both sides must be positive"
            )
        for what, cells in (("captions", self.captions), ("words", self.words)):
            widths = [len(row) for row in cells or ()]
            if cells is not None and widths != [columns] * rows:
                raise DataError(
                    f"layer {self.layer!r} has rows of {widths} {what}; its grid is {self.grid}"
                )
        maps = {query: np.asarray(m, dtype=np.float32) for query, m in self.saliency.items()}
        for query, values in maps.items():
            if values.shape != (rows, columns):
                raise DataError(
                    f"layer {self.layer!r}, query {query!r}: the map has shape {values.shape}, "
                    f"the grid is {self.grid}"
                )
            if not np.isfinite(values).all():
                raise DataError(
                    f"layer {self.layer!r}, query {query!r}: "
                    f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite"
                )
        object.__setattr__(self, "saliency", maps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerExplanation):
            return NotImplemented
        return (
            (self.layer, self.grid, self.caption, self.captions, self.words)
            == (other.layer, other.grid, other.caption, other.captions, other.words)
            and self.saliency.keys() == other.saliency.keys()
            and all(np.array_equal(m, other.saliency[q]) for q, m in self.saliency.items())
        )


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything that was asked about one picture.

    Two are equal if their data are; `image` and `id` do not count.
    """

    image_size: tuple[int, int]
    """Width and height of the original picture, in pixels."""
    region: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels of the original: the part that the grids cover."""
    layers: dict[str, LayerExplanation]
    """By layer name, in the order asked."""
    queries: tuple[str, ...]
    """Texts with a saliency map."""
    calibration: str
    """One of `CALIBRATIONS`."""
    model: str
    """Name or hub id of the model."""
    version: str
    """Digest of the translator's weights."""
    source: str | None = None
    """File name or key of the picture."""
    image: Image.Image | None = field(default=None, compare=False, repr=False)
    """The picture itself, for drawing; not part of the JSON form."""
    id: str | None = field(default=None, compare=False)
    """Under which a service keeps it (`devil.client`); not part of the JSON form."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise DataError(f"image_size is {self.image_size}; both sides must be positive")
        left, top, right, bottom = self.region
        if not (all(map(math.isfinite, self.region)) and left < right and top < bottom):
            raise DataError(f"region is {self.region}, not (left, top, right, bottom) of some area")
        if right <= 0 or bottom <= 0 or left >= self.image_size[0] or top >= self.image_size[1]:
            raise DataError(f"region {self.region} lies outside the picture of {self.image_size}")
        if self.calibration not in CALIBRATIONS:
            raise DataError(
                f"calibration is {self.calibration!r}; it can be {', '.join(CALIBRATIONS)}"
            )
        if len(set(self.queries)) != len(self.queries):
            raise DataError(f"queries {self.queries} contain one text twice")
        if self.image is not None and self.image.size != tuple(self.image_size):
            raise DataError(f"the image is {self.image.size}, image_size says {self.image_size}")
        for name, layer in self.layers.items():
            if layer.layer != name:
                raise DataError(f"layer {layer.layer!r} is filed under the name {name!r}")
            unknown = sorted(layer.saliency.keys() - set(self.queries))
            if unknown:
                raise DataError(f"layer {name!r} has maps for {unknown}, which no query asks for")

    def cell(self, layer: str, row: int, column: int) -> tuple[float, float, float, float]:
        """The box (left, top, right, bottom) of a location, in pixels of the original picture.

        Raises:
            DataError: the explanation has no such layer, or its grid no such location.
        """
        if layer not in self.layers:
            raise DataError(f"no layer {layer!r}; there are {', '.join(self.layers)}")
        rows, columns = self.layers[layer].grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise DataError(
                f"no location ({row}, {column}) in the {rows} x {columns} grid of {layer}"
            )
        left, top, right, bottom = self.region
        width, height = (right - left) / columns, (bottom - top) / rows
        return (
            left + column * width,
            top + row * height,
            left + (column + 1) * width,
            top + (row + 1) * height,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; `layers` is a list, so that no reader loses its order."""
        return {
            "format_version": FORMAT_VERSION,
            "source": self.source,
            "image_size": list(self.image_size),
            "region": list(self.region),
            "model": self.model,
            "version": self.version,
            "calibration": self.calibration,
            "queries": list(self.queries),
            "layers": [_layer_to_dict(layer) for layer in self.layers.values()],
        }

    @classmethod
    def from_dict(
        cls, document: Mapping[str, Any], *, image: Image.Image | None = None
    ) -> Explanation:
        """Read what `to_dict` wrote.

        Args:
            document: the dictionary.
            image: the picture, which the document does not carry.

        Raises:
            DataError: another format version, a key that is missing or unknown, a wrong value.
        """
        found = document.get("format_version") if isinstance(document, Mapping) else None
        if found != FORMAT_VERSION or isinstance(found, bool):
            raise DataError(
                f"explanation has format_version {found!r}; this version of DeViL reads "
                f"{FORMAT_VERSION}: write it again, or use the version that wrote it"
            )
        names = {"format_version"} | {f.name for f in fields(cls)} - {"image", "id"}
        _check_keys(document, names, "explanation")
        try:
            layers = [_layer_from_dict(layer) for layer in document["layers"]]
            width, height = document["image_size"]
            left, top, right, bottom = document["region"]
            if len({layer.layer for layer in layers}) != len(layers):
                raise DataError(
                    f"layers {[layer.layer for layer in layers]} contain one name twice"
                )
            return cls(
                image_size=(_integer(width), _integer(height)),
                region=(_number(left), _number(top), _number(right), _number(bottom)),
                layers={layer.layer: layer for layer in layers},
                queries=tuple(_text(query) for query in document["queries"]),
                calibration=_text(document["calibration"]),
                model=_text(document["model"]),
                version=_text(document["version"]),
                source=None if document["source"] is None else _text(document["source"]),
                image=image,
            )
        except DataError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"explanation is malformed: {error}") from error

    def to_json(self, *, indent: int | None = None) -> str:
        """The JSON form, in ASCII; NaN and infinity never occur in it."""
        separators = (",", ":") if indent is None else (",", ": ")
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent, separators=separators)

    @classmethod
    def from_json(cls, text: str | bytes, *, image: Image.Image | None = None) -> Explanation:
        """Read what `to_json` wrote; raises `DataError` as `from_dict` does."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"explanation is not JSON: {error}") from error
        return cls.from_dict(document, image=image)

    def to_png(self, path: str | PathLike[str]) -> Path:
        """Draw the picture, captions and heat maps into one PNG file; returns its path."""
        from devil.report.figure import explanation_png

        return explanation_png(self, path)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """One self-contained interactive page; written to `path` if given, and returned."""
        from devil.files import write_atomically
        from devil.report.page import explanation_html

        page = explanation_html(self)
        if path is not None:
            write_atomically(path, page.encode("utf-8", errors="replace"))
        return page


def _caption_to_dict(caption: Caption | None) -> dict[str, Any] | None:
    return caption and {
        "text": caption.text,
        "log_probability": caption.log_probability,
        "tokens": caption.tokens,
    }


def _layer_to_dict(layer: LayerExplanation) -> dict[str, Any]:
    captions = layer.captions
    return {
        "layer": layer.layer,
        "grid": list(layer.grid),
        "caption": _caption_to_dict(layer.caption),
        "captions": captions and [[_caption_to_dict(c) for c in row] for row in captions],
        "saliency": {
            query: [[_shortest(value) for value in row] for row in values]
            for query, values in layer.saliency.items()
        },
        "words": layer.words
        and [[words and [w._asdict() for w in words] for words in row] for row in layer.words],
    }


def _shortest(value: np.float32) -> float:
    """The double with the fewest digits that rounds to this float32."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)


def _caption_from_dict(document: Mapping[str, Any] | None) -> Caption | None:
    if document is None:
        return None
    _check_keys(document, {"text", "log_probability", "tokens"}, "caption")
    return Caption(
        text=_text(document["text"]),
        log_probability=_number(document["log_probability"]),
        tokens=_integer(document["tokens"]),
    )


def _layer_from_dict(document: Mapping[str, Any]) -> LayerExplanation:
    _check_keys(document, {f.name for f in fields(LayerExplanation)}, "layer")
    rows, columns = document["grid"]
    captions, words = document["captions"], document["words"]
    return LayerExplanation(
        layer=_text(document["layer"]),
        grid=(_integer(rows), _integer(columns)),
        caption=_caption_from_dict(document["caption"]),
        captions=None
        if captions is None
        else tuple(tuple(_caption_from_dict(c) for c in row) for row in captions),
        saliency={_text(query): _map(values) for query, values in document["saliency"].items()},
        words=None
        if words is None
        else tuple(tuple(_words_from_list(cell) for cell in row) for row in words),
    )


def _words_from_list(listed: Any) -> tuple[WordScore, ...] | None:
    if listed is None:
        return None
    for word in listed:
        _check_keys(word, {"word", "score"}, "word")
    return tuple(WordScore(_text(word["word"]), _number(word["score"])) for word in listed)


def _map(values: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused as such
        return np.array([[_number(value) for value in row] for row in values]).astype(np.float32)


def _check_keys(document: Mapping[str, Any], names: set[str], what: str) -> None:
    if not isinstance(document, Mapping):
        raise DataError(f"{what} is {type(document).__name__}, not an object")
    unknown, missing = sorted(document.keys() - names), sorted(names - document.keys())
    if unknown or missing:
        raise DataError(f"{what} has unknown keys {unknown} and lacks {missing}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"expected text, found {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"expected a number, found {value!r}")
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"expected a whole number, found {value!r}")
    return value
