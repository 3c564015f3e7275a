"""An explanation as one picture file: the grid, the captions, and a heat map per query and layer.

Everything is placed in inches from the top left of a sheet whose height follows from its content,
so that long captions wrap instead of colliding. Colours come from `heatmap`, text measurement and
the drawing itself from matplotlib, without its global state. The interactive form is `page`.
"""

from __future__ import annotations

import io
import math
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from devil.explanation import Caption, Explanation, LayerExplanation
from devil.files import write_atomically
from devil.report.heatmap import colour_table, overlay, scale_of
from devil.report.sheet import Sheet, Style

WIDTH = 12.0
MARGIN = 0.5
PICTURE = 5.0
"""Longest side of the picture, in inches."""
NARROWEST = 3.0
"""Width kept for the picture, in inches, if it is narrower than that."""
CALLED_OUT = 6
"""Locations whose captions are printed."""
TILE = 1.75
"""Largest side of a heat map, in inches."""
LONGEST_NAME = 80
"""Characters of a query that are printed: those of a thousand take seconds to set."""
PIXELS = 960
"""Longest side to which pictures are reduced before drawing."""

INK, QUIET, LINE, ACCENT = "#201d24", "#6b6570", "#d9d3c8", "#a3215f"

TITLE = Style(18, "serif", INK, bold=True)
HEADING = Style(11, "sans-serif", INK, bold=True)
VOICE = Style(11.5, "serif", INK)
QUERY = Style(11, "serif", INK, italic=True)
NAME = Style(8.5, "monospace", QUIET)
SMALL = Style(8.5, "sans-serif", QUIET)

UNITS = {
    "none": "log-probability of the words, nats",
    "pmi": "log-probability minus that at the layer's mean feature, nats",
    "mean": "log-probability per token, nats",
    "contrast": "log-probability against the other words, nats",
}


class Location(NamedTuple):
    """A place on a layer's grid and what is said there."""

    row: int
    column: int
    caption: Caption


def explanation_png(explanation: Explanation, path: str | PathLike[str]) -> Path:
    """Draw an explanation into a PNG file; returns its path."""
    return write_atomically(path, render_png(explanation))


def render_png(explanation: Explanation) -> bytes:
    """Draw an explanation; the bytes of a PNG file."""
    sheet = Sheet(WIDTH)
    image, region = _reduced(explanation)
    y = _header(sheet, explanation)
    speaking = next((x for x in reversed(explanation.layers.values()) if x.captions), None)
    locations = chosen_locations(speaking) if speaking else []
    below_picture = _picture(sheet, y, image, region, explanation, speaking, locations)
    wide = max(PICTURE * image.width / max(image.size), NARROWEST)
    below_words = _words(sheet, MARGIN + wide + 0.5, y, explanation, speaking, locations)
    y = max(below_picture, below_words)
    if explanation.queries and explanation.layers:
        y = _maps(sheet, y + 0.4, explanation, image, region)
    buffer = io.BytesIO()
    sheet.save(buffer, height=y + MARGIN)
    return buffer.getvalue()


def chosen_locations(layer: LayerExplanation, count: int = CALLED_OUT) -> list[Location]:
    """The surest captions of a layer that differ from one another and lie apart, in reading order.

    Apart means at least a fifth of the grid's diagonal, so that the dots can be told apart.
    """
    if layer.captions is None:
        return []
    everywhere = [
        Location(row, column, caption)
        for row, captions in enumerate(layer.captions)
        for column, caption in enumerate(captions)
        if caption is not None
    ]
    everywhere.sort(key=lambda location: -location.caption.token_probability)
    apart = 0.2 * math.hypot(*layer.grid)
    chosen: list[Location] = []
    for one in everywhere:
        if len(chosen) == count:
            break
        if all(
            one.caption.text != other.caption.text
            and math.hypot(one.row - other.row, one.column - other.column) >= apart
            for other in chosen
        ):
            chosen.append(one)
    return sorted(chosen, key=lambda location: location[:2])


def _reduced(explanation: Explanation) -> tuple[Image.Image, tuple[float, ...]]:
    """The picture (plain grey if it was not kept) at drawing size, and the region on it."""
    width, height = explanation.image_size
    share = min(1.0, PIXELS / max(width, height))
    size = max(1, round(width * share)), max(1, round(height * share))
    image = explanation.image or Image.new("RGB", size, (150, 150, 150))
    left, top, right, bottom = explanation.region
    across, down = size[0] / width, size[1] / height
    region = (left * across, top * down, right * across, bottom * down)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), region


def _header(sheet: Sheet, explanation: Explanation) -> float:
    wide = WIDTH - 2 * MARGIN
    y = sheet.text(MARGIN, MARGIN, wide, explanation.source or "What the layers see", TITLE)
    width, height = explanation.image_size
    about = f"{explanation.model}, version {explanation.version[:12]}; {width} by {height} pixels"
    return sheet.text(MARGIN, y + 0.04, wide, about, SMALL) + 0.25


def _picture(
    sheet: Sheet,
    y: float,
    image: Image.Image,
    region: tuple[float, ...],
    explanation: Explanation,
    layer: LayerExplanation | None,
    locations: list[Location],
) -> float:
    """The picture, dark outside the region, with the grid and a numbered dot per location."""
    scale = PICTURE / max(image.size)
    width, height = image.width * scale, image.height * scale
    pixels = np.asarray(image, np.float64) * 0.5
    left, top, right, bottom = (round(edge) for edge in region)
    inside = np.s_[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    pixels[inside] *= 2
    sheet.image(MARGIN, y, width, height, pixels.astype(np.uint8))
    if layer is None:
        return y + height
    grid = [edge * scale for edge in region]
    rows, columns = layer.grid
    clip = (MARGIN, y, width, height)
    for i in range(rows + 1):
        at = y + grid[1] + (grid[3] - grid[1]) * i / rows
        sheet.line((MARGIN + grid[0], at), (MARGIN + grid[2], at), "white", 0.5, 0.5, clip)
    for j in range(columns + 1):
        at = MARGIN + grid[0] + (grid[2] - grid[0]) * j / columns
        sheet.line((at, y + grid[1]), (at, y + grid[3]), "white", 0.5, 0.5, clip)
    across, down = (
        width / explanation.image_size[0],
        height / explanation.image_size[1],
    )
    for number, location in enumerate(locations, start=1):
        cell = explanation.cell(layer.layer, location.row, location.column)
        x, at = (cell[0] + cell[2]) / 2 * across, (cell[1] + cell[3]) / 2 * down
        sheet.dot(MARGIN + x, y + at, str(number), ACCENT)
    return y + height


def _words(
    sheet: Sheet,
    x: float,
    y: float,
    explanation: Explanation,
    speaking: LayerExplanation | None,
    locations: list[Location],
) -> float:
    """The right column: a caption per layer, then the numbered captions of locations."""
    wide = WIDTH - MARGIN - x
    y = sheet.text(x, y, wide, "What each layer says", HEADING) + 0.08
    for layer in explanation.layers.values():
        y = _entry(sheet, x, y, wide, _title(layer), layer.caption)
    if speaking is None:
        return y
    y = sheet.text(x, y + 0.3, wide, f"At single locations of {_title(speaking)}", HEADING) + 0.08
    for number, location in enumerate(locations, start=1):
        y = _entry(sheet, x, y, wide, number, location.caption)
    note = (
        "The surest captions that differ. Percentages: geometric mean of the token probabilities."
    )
    return sheet.text(x, y + 0.1, wide, note, SMALL)


def _entry(
    sheet: Sheet, x: float, y: float, wide: float, label: str | int, caption: Caption | None
) -> float:
    """A ruled row of a label (a layer's name, or a dot's number), a caption, and a percentage."""
    sheet.line((x, y), (x + wide, y), LINE, 0.8)
    y += 0.09
    indent = 0.45 if isinstance(label, int) else 1.35
    if isinstance(label, int):
        sheet.dot(x + 0.13, y + 0.11, str(label), ACCENT)
        end = y
    else:
        end = sheet.text(x, y + 0.03, indent - 0.1, label, NAME)
    text = "no caption asked for" if caption is None else caption.text or "(nothing)"
    style = SMALL if caption is None else VOICE
    end = max(end, sheet.text(x + indent, y, wide - indent - 0.6, text, style))
    if caption is not None:
        percent = 100 * caption.token_probability
        shown = f"{percent:.0f} %" if percent >= 9.5 else f"{percent:.1f} %"
        sheet.text(x + wide - 0.5, y + 0.03, 0.5, shown, SMALL, align="right")
    return end + 0.09


def _maps(
    sheet: Sheet,
    y: float,
    explanation: Explanation,
    image: Image.Image,
    region: tuple[float, ...],
) -> float:
    """Heat maps in a table; whichever are more, layers or queries, run along it."""
    sheet.line((MARGIN, y - 0.2), (WIDTH - MARGIN, y - 0.2), LINE, 0.8)
    below = sheet.text(MARGIN, y, 3, "Where the words fit", HEADING)
    _key(sheet, MARGIN + 2.0, y + 0.03, UNITS[explanation.calibration])
    layers, queries = list(explanation.layers.values()), list(explanation.queries)
    along_layers = len(layers) >= len(queries)
    titles, quoted = [_title(layer) for layer in layers], [_quoted(query) for query in queries]
    heads, sides = (titles, quoted) if along_layers else (quoted, titles)
    head_style, side_style = (NAME, QUERY) if along_layers else (QUERY, NAME)
    label, gap = 1.45, 0.14
    tile = min(TILE, (WIDTH - 2 * MARGIN - label) / len(heads) - gap)
    lefts = [MARGIN + label + i * (tile + gap) for i in range(len(heads))]
    y = below + 0.15
    tallest = max(sheet.height_of(head, tile, head_style) for head in heads)
    for left, head in zip(lefts, heads, strict=True):
        sheet.text(
            left, y + tallest - sheet.height_of(head, tile, head_style), tile, head, head_style
        )
    y += tallest + 0.07
    for i, side in enumerate(sides):
        end = sheet.text(MARGIN, y + 0.02, label - 0.15, side, side_style)
        for j, left in enumerate(lefts):
            layer, query = (layers[j], queries[i]) if along_layers else (layers[i], queries[j])
            end = max(end, _tile(sheet, left, y, tile, layer.saliency.get(query), image, region))
        y = end + 0.14
    return y


def _quoted(query: str) -> str:
    """A query as a name of its maps, cut where it is long."""
    cut = query if len(query) <= LONGEST_NAME else f"{query[: LONGEST_NAME - 1]}…"
    return f"“{cut}”"


def _tile(
    sheet: Sheet,
    x: float,
    y: float,
    side: float,
    values: np.ndarray | None,
    image: Image.Image,
    region: tuple[float, ...],
) -> float:
    """One heat map over its part of the picture, with its range below."""
    if values is None:
        return sheet.text(x, y, side, "no map", SMALL)
    aspect = (region[2] - region[0]) / (region[3] - region[1])
    width, height = (side, side / aspect) if aspect >= 1 else (side * aspect, side)
    size = max(1, round(width * 150)), max(1, round(height * 150))
    part = image.transform(size, Image.Transform.EXTENT, region, Image.Resampling.BILINEAR)
    coloured = overlay(part, values, (0, 0, *size), opacity=0.65)
    sheet.image(x, y, width, height, np.asarray(coloured))
    size_of_text = Style(min(8.5, 4.4 * side + 2.5), "sans-serif", QUIET)
    return sheet.text(x, y + height + 0.04, side, scale_of(values).label, size_of_text)


def _key(sheet: Sheet, x: float, y: float, unit: str) -> None:
    x = sheet.phrase(x, y, "lowest in the map", SMALL) + 0.1
    sheet.image(x, y + 0.03, 1.2, 0.1, colour_table()[None])
    sheet.phrase(x + 1.3, y, f"highest in the map; {unit}", SMALL)


def _title(layer: LayerExplanation) -> str:
    return "all layers" if layer.layer == "all" else layer.layer
