"""Captions behind their images' prefixes, laid out in rows with little padding.

``[BOS, prefix × n, caption, caption, ...]`` is one image's sequence; each caption sees the prefix
and itself. Where the language model heeds masks and positions of ours, sequences of several images
stand in one row, so that rows are of nearly equal length; otherwise each caption has a row, and
rows of similar length run together.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

NOBODY = -1
"""Image of filling, and caption of a prefix."""
WIDEST = 256
"""Rows are made no longer than this, if no sequence is longer."""
ATTENTION = 1024
"""Row length at which attention costs about as much as the rest of a layer."""
CAPACITIES = 8
"""Row lengths that are tried."""
SLACK = 1.25
"""Longest over shortest row of those that run together."""


class CaptionRows(NamedTuple):
    """Input rows of a language model, and where its labels are; on the CPU or a device."""

    ids: Int[Tensor, "row position"]
    """Token ids; anything where the prefix stands."""
    image: Int[Tensor, "row position"]
    """Image that a position belongs to; `NOBODY` for filling."""
    caption: Int[Tensor, "row position"]
    """Caption that a position belongs to; `NOBODY` for BOS, prefix and filling."""
    positions: Int[Tensor, "row position"]
    """Place in the text that a position sees."""
    prefix: Int[Tensor, "place"]
    """Where the prefixes stand, by image, in the flattened rows."""
    predicting: Int[Tensor, "label"]
    """Where each label is predicted, in the flattened rows."""
    labels: Int[Tensor, "label"]

    def mask(self) -> Bool[Tensor, "row head position position"]:
        """Which positions see which (True): (row, 1, query, key)."""
        width = self.ids.shape[1]
        sees = torch.ones(width, width, dtype=torch.bool, device=self.ids.device).tril()
        own = self.image[:, :, None] == self.image[:, None]
        text = self.caption[:, :, None] == self.caption[:, None]
        return (sees & own & (text | (self.caption[:, None] == NOBODY)))[:, None]

    def to(self, device: torch.device) -> "CaptionRows":
        """The same on a device, in one copy."""
        if device.type == "cpu":
            return self
        sizes, shapes = [t.numel() for t in self], [t.shape for t in self]
        flat = torch.cat([t.reshape(-1) for t in self]).pin_memory()
        parts = flat.to(device, non_blocking=True).split(sizes)
        return CaptionRows(*(p.view(s) for p, s in zip(parts, shapes, strict=True)))


def packed_rows(
    captions: Sequence[Sequence[int]],
    images: int,
    *,
    bos: int | None,
    eos: int,
    prefix: int,
    context: int,
) -> CaptionRows:
    """All captions of a batch behind their prefixes, several images in a row.

    Args:
        captions: token ids without BOS and EOS; the same number for each image, an image's
            together. An empty one has no label.
        images: number of images.
        bos, eos: token ids; `bos` is None where sequences start with the prefix.
        prefix: number n of prefix embeddings.
        context: most positions of a row.
    """
    each = len(captions) // images
    before = prefix + (bos is not None)
    lengths = [before + sum(map(len, captions[i * each : (i + 1) * each])) for i in range(images)]
    rows = shared_rows(lengths, context)
    width = max(sum(lengths[i] for i in row) for row in rows)
    builder = _Builder(len(rows), width, bos, eos, prefix)
    for number, row in enumerate(rows):
        place = 0
        for image in row:
            place = builder.add(number, place, image, captions[image * each : (image + 1) * each])
    return builder.rows()


def shared_rows(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Which sequences share a row: best-fit decreasing, at the row length that costs least."""
    longest = max(lengths)
    most = max(longest, min(WIDEST, context))
    best, least = [], float("inf")
    for step in range(CAPACITIES):
        rows = _best_fit(lengths, longest + (most - longest) * step // (CAPACITIES - 1))
        width = max(sum(lengths[i] for i in row) for row in rows)
        cost = len(rows) * width * (1 + width / ATTENTION)
        if cost < least:
            best, least = rows, cost
    return best


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each sequence, longest first, into the fullest row that has room for it."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(open_rows, (lengths[index], -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(open_rows, (room - lengths[index], row))
    return rows


class _Builder:
    """Fills the arrays of `CaptionRows` one image at a time."""

    def __init__(self, rows: int, width: int, bos: int | None, eos: int, prefix: int) -> None:
        self.start = [] if bos is None else [bos]
        self.eos, self.prefix, self.width = eos, prefix, width
        self.ids = np.full((rows, width), eos)
        self.image = np.full((rows, width), NOBODY)
        self.caption = np.full((rows, width), NOBODY)
        self.positions = np.zeros((rows, width), dtype=np.int64)
        self.prefixes: dict[int, np.ndarray] = {}
        self.predicting: list[np.ndarray] = []
        self.labels: list[int] = []

    def add(self, row: int, place: int, image: int, captions: Sequence[Sequence[int]]) -> int:
        """Put an image's prefix and captions at a place of a row; returns where they end."""
        before = len(self.start) + self.prefix
        first, base = place, row * self.width
        self.ids[row, place : place + len(self.start)] = self.start
        self.positions[row, place : place + before] = np.arange(before)
        self.prefixes[image] = base + place + np.arange(len(self.start), before)
        last = base + place + before - 1
        place += before
        for number, ids in enumerate(captions):
            if not ids:
                continue
            span = slice(place, place + len(ids))
            self.ids[row, span] = ids
            self.caption[row, span] = number
            self.positions[row, span] = before + np.arange(len(ids))
            # The prefix's end predicts the first token, each token the next, the last one EOS.
            self.predicting.append(np.array([last, *range(base + place, base + span.stop)]))
            self.labels += [*ids, self.eos]
            place = span.stop
        self.image[row, first:place] = image
        return place

    def rows(self) -> CaptionRows:
        """What was put in."""
        predicting = np.concatenate(self.predicting) if self.predicting else np.zeros(0, np.int64)
        prefixes = np.concatenate([self.prefixes[i] for i in sorted(self.prefixes)])
        arrays = (self.ids, self.image, self.caption, self.positions, prefixes, predicting)
        tensors = [torch.from_numpy(array.astype(np.int64)) for array in arrays]
        return CaptionRows._make([*tensors, torch.tensor(self.labels, dtype=torch.long)])


def length_buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of similar length, shortest first: those that run together."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or lengths[index] > SLACK * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(index)
    return groups
