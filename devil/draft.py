"""An explanation in the making: rows of feature vectors, read in any cut and order.

A draft holds one picture's vectors, one row for each thing to be read: a pooled layer, a location,
a layer's mean feature. `devil.reading.read_rows` puts rows of several drafts through translator and
language model together; a draft whose rows have all been read becomes an `Explanation`. How rows
are cut changes no result, so that a big picture and fifty small ones can share the device's
batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from devil.explanation import Caption, Explanation, LayerExplanation, WordScore
from devil.model import DeViL
from devil.picture_features import location_features, pooled_features, visible_slots
from devil.question import Question
from devil.saliency import (
    Plan,
    calibrate,
    check_calibration,
    plan_queries,
    tokenize_queries,
    vocabulary_log_probabilities,
)
from devil.types import LayerFeatures


class Asked(NamedTuple):
    """A question that a model can answer, prepared once for all pictures."""

    question: Question
    layers: tuple[str, ...]
    plan: Plan


def prepare(model: DeViL, question: Question) -> Asked:
    """Check a question against a model.

    Raises:
        LayerError, QueryError: it cannot be answered; says why, and what can.
    """
    layers = model.chosen_layers(question.layers)
    check_calibration(question.calibration, len(question.queries))
    queries = tokenize_queries(model.language_model, question.queries, prompt=question.prompt)
    return Asked(question, layers, plan_queries(model.language_model, queries))


class Block(NamedTuple):
    """Rows of one layer that are read in the same way."""

    layer: str
    vectors: Mapping[str, Tensor]
    """(row, channels) by slot."""
    cells: tuple[int, ...] | None
    """Which location each row is, row-major; None where the rows are no locations."""
    captioned: bool
    scored: bool
    worded: bool

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))


class Draft:
    """One picture's explanation while its rows are being read."""

    def __init__(
        self,
        model: DeViL,
        features: Mapping[str, LayerFeatures],
        size: tuple[int, int],
        asked: Asked,
    ) -> None:
        """Lay out the rows.

        Args:
            model: answers; its weights must stay the same until the draft is finished.
            features: of this picture alone, from `devil.picture_features.image_features`.
            size: width and height of the picture.
            asked: from `prepare`.
        """
        assert model.backbone is not None
        self.model, self.size, self.asked = model, size, asked
        self.region = model.backbone.transform.region(size)
        self.grids: dict[str, tuple[int, int]] = {}
        self.blocks = tuple(self._blocks(features))
        self.rows = sum(len(block) for block in self.blocks)
        """Rows to be read in all."""
        self.taken = 0
        """Rows that have been handed out."""
        self._left = self.rows
        self._captions: dict[int, list[Caption | None]] = {}
        self._scores: dict[int, Tensor] = {}
        self._words: dict[int, list[tuple[WordScore, ...] | None]] = {}
        self._baselines: dict[str, Tensor] = {}

    def _blocks(self, features: Mapping[str, LayerFeatures]) -> Iterator[Block]:
        question, scored = self.asked.question, bool(self.asked.question.queries)
        for layer in self.asked.layers:
            if question.captions:
                pooled = pooled_features(self.model, features, layer)
                yield Block(layer, pooled, None, captioned=True, scored=False, worded=False)
        for layer in self.asked.layers:
            vectors, grid = location_features(
                self.model, features, layer, smoothing=question.smoothing
            )
            self.grids[layer] = grid
            told = self._told(grid)
            captioned, worded = question.captions, question.words > 0
            if told and (captioned or worded or scored):
                yield Block(layer, _rows(vectors, told), told, captioned, scored, worded)
            rest = tuple(sorted(set(range(grid[0] * grid[1])) - set(told)))
            if rest and scored:
                yield Block(layer, _rows(vectors, rest), rest, False, True, False)
            if scored and question.calibration == "pmi":
                mean = self.model.mean_features(visible_slots(self.model, layer))
                yield Block(layer, mean, None, captioned=False, scored=True, worded=False)

    def _told(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Locations of which captions and words are asked for, row-major."""
        question = self.asked.question
        if question.everywhere:
            return tuple(range(grid[0] * grid[1]))
        return tuple(sorted({self._cell(point, grid) for point in question.points}))

    def _cell(self, point: tuple[float, float], grid: tuple[int, int]) -> int:
        left, top, right, bottom = self.region
        (x, y), (width, height) = point, self.size
        row = int((y * height - top) / (bottom - top) * grid[0])
        column = int((x * width - left) / (right - left) * grid[1])
        row, column = min(max(row, 0), grid[0] - 1), min(max(column, 0), grid[1] - 1)
        return row * grid[1] + column

    @property
    def waiting(self) -> int:
        """Rows that have not been handed out."""
        return self.rows - self.taken

    @property
    def finished(self) -> bool:
        """Whether all rows have been read."""
        return self._left == 0

    def take(self, most: int) -> "list[Rows]":
        """Hand out the next rows, at most so many, to be read by `devil.reading.read_rows`."""
        found: list[Rows] = []
        start, end = self.taken, min(self.rows, self.taken + most)
        before = 0
        for number, block in enumerate(self.blocks):
            low, high = max(start - before, 0), min(end - before, len(block))
            if low < high:
                found.append(Rows(self, number, low, high))
            before += len(block)
        self.taken = end
        return found

    def keep(
        self,
        rows: "Rows",
        captions: Sequence[Caption] | None,
        scores: Tensor | None,
        words: Sequence[tuple[WordScore, ...]] | None,
    ) -> None:
        """Take down what was read of some rows."""
        number, low, high = rows.block, rows.start, rows.stop
        count = len(self.blocks[number])
        if captions is not None:
            self._captions.setdefault(number, [None] * count)[low:high] = captions
        if words is not None:
            self._words.setdefault(number, [None] * count)[low:high] = words
        if scores is not None:
            if number not in self._scores:
                self._scores[number] = torch.zeros(count, scores.shape[1])
            self._scores[number][low:high] = scores.float().cpu()
        self._left -= high - low

    def word_baseline(self, layer: str) -> Tensor | None:
        """What the language model says after the layer's mean feature, if words are set off."""
        question = self.asked.question
        if question.calibration != "pmi":
            return None
        if layer not in self._baselines:
            mean = self.model.prefix(self.model.mean_features(visible_slots(self.model, layer)))
            self._baselines[layer] = vocabulary_log_probabilities(
                self.model.language_model, mean, prompt=question.prompt
            )[0]
        return self._baselines[layer]

    def explanation(
        self, image: Image.Image | None = None, *, source: str | None = None
    ) -> Explanation:
        """The explanation, once all rows have been read; with the picture and a name for it."""
        assert self.finished, (self._left, self.rows)
        question = self.asked.question
        return Explanation(
            image_size=self.size,
            region=self.region,
            layers={layer: self._layer(layer) for layer in self.asked.layers},
            queries=question.queries,
            calibration=question.calibration,
            model=self.model.name,
            version=self.model.version,
            source=source,
            image=image,
        )

    def _layer(self, layer: str) -> LayerExplanation:
        height, width = self.grids[layer]
        caption: Caption | None = None
        captions: list[Caption | None] = [None] * (height * width)
        words: list[tuple[WordScore, ...] | None] = [None] * (height * width)
        queries = self.asked.plan.queries
        scores, baseline = torch.zeros(height * width, len(queries)), None
        for number, block in enumerate(self.blocks):
            if block.layer != layer:
                continue
            if block.cells is None:
                caption = self._captions[number][0] if block.captioned else caption
                baseline = self._scores[number] if block.scored else baseline
                continue
            for place, cell in enumerate(block.cells):
                captions[cell] = self._captions[number][place] if block.captioned else None
                words[cell] = self._words[number][place] if block.worded else None
            if block.scored:
                scores[list(block.cells)] = self._scores[number]
        question = self.asked.question
        saliency: dict[str, np.ndarray] = {}
        if queries:
            calibrated = calibrate(
                scores,
                queries,
                question.calibration,  # type: ignore[arg-type]  # checked by `prepare`
                lambda: baseline,  # type: ignore[arg-type,return-value]  # there with `pmi`
            )
            grids = calibrated.numpy().reshape(height, width, len(queries))
            saliency = {
                query.text: np.ascontiguousarray(grids[:, :, q]) for q, query in enumerate(queries)
            }
        told = question.everywhere or bool(question.points)
        return LayerExplanation(
            layer=layer,
            grid=(height, width),
            caption=caption,
            captions=_grid(captions, width) if question.captions and told else None,
            saliency=saliency,
            words=_grid(words, width) if question.words and told else None,
        )


class Rows(NamedTuple):
    """Some rows of one block of a draft."""

    draft: Draft
    block: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @property
    def of(self) -> Block:
        """The block."""
        return self.draft.blocks[self.block]

    def vectors(self) -> dict[str, Tensor]:
        """(row, channels) by slot."""
        return {slot: rows[self.start : self.stop] for slot, rows in self.of.vectors.items()}


def _rows(vectors: Mapping[str, Tensor], cells: Sequence[int]) -> dict[str, Tensor]:
    if cells == tuple(range(len(next(iter(vectors.values()))))):
        return dict(vectors)
    return {slot: rows[list(cells)] for slot, rows in vectors.items()}


def _grid(cells: Sequence[Any], width: int) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(cells[i : i + width]) for i in range(0, len(cells), width))
