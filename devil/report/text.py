"""An explanation for a terminal: a table of captions, and a heat map in shades for each query.

Maps have the scale of `heatmap`, each its own. What a language model wrote can hold anything: only
what is printable is printed.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from devil.explanation import Caption, Explanation, LayerExplanation
from devil.report.heatmap import nats, normalise, scale_of
from devil.report.table import Cell, ReportTable

SHADES = "·░▒▓█"
"""From the least to the most."""
CELL = 2
"""Characters of a location in a row, which are about half as wide as high."""
GAP = "   "
"""Between maps that stand beside each other."""
WORDS = 5
"""Of a location, printed."""


def explanation_text(explanation: Explanation, *, width: int = 100) -> str:
    """An explanation in plain text.

    Args:
        explanation: of one picture.
        width: characters of a line, for the maps; captions are not cut.
    """
    size = " × ".join(map(str, explanation.image_size))
    name = printable(explanation.source or "picture")
    parts = [f"{name} ({size} pixels), {explanation.model} {explanation.version[:12]}"]
    layers = list(explanation.layers.values())
    if any(layer.caption for layer in layers):
        parts.append(_captions(layers).text())
    if any(True for layer in layers for _ in _told(layer)):
        parts.append(_locations(layers).text())
    for query in explanation.queries:
        maps = [layer for layer in layers if query in layer.saliency]
        if maps:
            title = f"“{printable(query)}” ({explanation.calibration}, nats)"
            blocks = [_block(layer, query, width) for layer in maps]
            parts.append("\n".join([title, *_beside(blocks, width)]))
    return "\n\n".join(parts)


def printable(text: str) -> str:
    """Text without what would move the cursor or change the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _captions(layers: Sequence[LayerExplanation]) -> ReportTable:
    return ReportTable(
        title="Layers",
        caption="what the mean feature says, and the mean probability of its tokens",
        columns=("layer", "grid", "p", "caption"),
        rows=tuple(
            (layer.layer, f"{layer.grid[0]} × {layer.grid[1]}", *_cells(layer.caption))
            for layer in layers
        ),
    )


def _locations(layers: Sequence[LayerExplanation]) -> ReportTable:
    rows = [
        (layer.layer, f"{row}, {column}", *_cells(caption), words)
        for layer in layers
        for row, column, caption, words in _told(layer)
    ]
    shown = 5 if any(row[4] for row in rows) else 4
    return ReportTable(
        title="Locations",
        caption="row and column from the upper left, from 0",
        columns=("layer", "location", "p", "caption", "words")[:shown],
        rows=tuple(row[:shown] for row in rows),
    )


def _cells(caption: Caption | None) -> tuple[Cell, Cell]:
    return (caption.token_probability, printable(caption.text)) if caption else (None, None)


def _told(layer: LayerExplanation) -> Iterator[tuple[int, int, Caption | None, str]]:
    """Locations of which something is told: row, column, caption, words."""
    rows, columns = layer.grid
    for row in range(rows):
        for column in range(columns):
            caption = layer.captions[row][column] if layer.captions else None
            words = (layer.words[row][column] if layer.words else None) or ()
            if caption or words:
                listed = (f"{printable(word)} {nats(score)}" for word, score in words[:WORDS])
                yield row, column, caption, ", ".join(listed)


def _block(layer: LayerExplanation, query: str, width: int) -> list[str]:
    """A map under its name and scale, as lines of one length."""
    values = layer.saliency[query]
    lines = [layer.layer, scale_of(values).label, *shades(values, width)]
    longest = max(map(len, lines))
    return [line.ljust(longest) for line in lines]


def shades(values: np.ndarray, width: int) -> list[str]:
    """A map as lines of characters; where it is too wide, the most of several locations each."""
    factor = math.ceil(values.shape[1] * CELL / max(width, CELL))
    for axis in (0, 1):
        values = np.maximum.reduceat(values, range(0, values.shape[axis], factor), axis=axis)
    levels = np.minimum((normalise(values) * len(SHADES)).astype(int), len(SHADES) - 1)
    return ["".join(SHADES[level] * CELL for level in row) for row in levels]


def _beside(blocks: Sequence[list[str]], width: int) -> Iterator[str]:
    """Blocks of lines beside each other as far as they fit."""
    row: list[list[str]] = []
    for block in blocks:
        if row and len(GAP.join([*(b[0] for b in row), block[0]])) > width:
            yield from _joined(row)
            yield ""
            row = []
        row.append(block)
    yield from _joined(row)


def _joined(blocks: Sequence[list[str]]) -> Iterator[str]:
    for number in range(max(map(len, blocks))):
        lines = [block[number] if number < len(block) else " " * len(block[0]) for block in blocks]
        yield GAP.join(lines).rstrip()
