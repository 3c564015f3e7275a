"""A sheet of paper: text that wraps, pictures, lines and dots, placed in inches from the top left.

What is placed is remembered and drawn at the end, when the sheet's height is known. Text is taken
literally (a dollar sign starts no formula). What to place where is `figure`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.text import Text

Align = Literal["left", "right"]

DPI = 150
LEADING = 1.32
"""Distance of text lines, as a multiple of the font size."""


@dataclass(frozen=True)
class Style:
    """How a text looks."""

    size: float
    """In points."""
    family: str
    colour: str
    bold: bool = False
    italic: bool = False

    @property
    def font(self) -> FontProperties:
        return FontProperties(
            family=self.family,
            size=self.size,
            weight="bold" if self.bold else "normal",
            style="italic" if self.italic else "normal",
        )

    @property
    def line_height(self) -> float:
        """In inches."""
        return self.size * LEADING / 72


@dataclass
class Sheet:
    """A page of a given width, in inches; `text` and others return where the next may begin."""

    width: float
    _steps: list[Callable[[Figure, float], None]] = field(default_factory=list)
    _scratch: FigureCanvasAgg = field(
        default_factory=lambda: FigureCanvasAgg(Figure(dpi=DPI, figsize=(1, 1)))
    )

    def measure(self, text: str, style: Style) -> float:
        """Width of one line, in inches."""
        renderer = self._scratch.get_renderer()
        return renderer.get_text_width_height_descent(text, style.font, False)[0] / DPI

    def wrap(self, text: str, wide: float, style: Style) -> list[str]:
        """Break a text into lines of at most `wide` inches; too long a word breaks anywhere."""
        lines, line = [], ""
        for word in text.split():
            longer = f"{line} {word}" if line else word
            if self.measure(longer, style) <= wide:
                line = longer
                continue
            if line:
                lines.append(line)
            while len(word) > 1 and self.measure(word, style) > wide:
                cut = self._fitting(word, wide, style)
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        return [*lines, line] if line else lines

    def _fitting(self, word: str, wide: float, style: Style) -> int:
        """How many characters of a word fit; at least one."""
        fits, breaks = 1, len(word)
        while breaks - fits > 1:
            middle = (fits + breaks) // 2
            if self.measure(word[:middle], style) <= wide:
                fits = middle
            else:
                breaks = middle
        return fits

    def height_of(self, text: str, wide: float, style: Style) -> float:
        """Height of a wrapped text, in inches."""
        return len(self.wrap(text, wide, style)) * style.line_height

    def text(
        self, x: float, y: float, wide: float, text: str, style: Style, *, align: Align = "left"
    ) -> float:
        """Place a text that wraps; returns the y below it."""
        for line in self.wrap(text, wide, style):
            self._line_of_text(x if align == "left" else x + wide, y, line, style, align)
            y += style.line_height
        return y

    def phrase(self, x: float, y: float, text: str, style: Style) -> float:
        """Place one line; returns the x after it."""
        self._line_of_text(x, y, text, style, "left")
        return x + self.measure(text, style)

    def _line_of_text(self, x: float, y: float, text: str, style: Style, align: Align) -> None:
        baseline = y + style.size / 72

        def draw(figure: Figure, height: float) -> None:
            figure.add_artist(
                Text(
                    x / self.width,
                    1 - baseline / height,
                    text,
                    color=style.colour,
                    fontproperties=style.font,
                    horizontalalignment=align,
                    verticalalignment="baseline",
                    parse_math=False,
                )
            )

        self._steps.append(draw)

    def image(self, x: float, y: float, width: float, height: float, pixels: np.ndarray) -> None:
        """Place a uint8 (rows, columns, 3) array, stretched to the box."""

        def draw(figure: Figure, tall: float) -> None:
            box = (x / self.width, 1 - (y + height) / tall, width / self.width, height / tall)
            axes = figure.add_axes(box)
            axes.imshow(pixels, aspect="auto", interpolation="antialiased")
            axes.set_axis_off()

        self._steps.append(draw)

    def line(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        colour: str,
        points: float,
        opacity: float = 1.0,
        clip: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Place a horizontal or vertical line, cut to the box `clip` (x, y, width, height)."""
        if clip is not None:
            ends = []
            for x, y in (start, end):
                x = min(max(x, clip[0]), clip[0] + clip[2])
                ends.append((x, min(max(y, clip[1]), clip[1] + clip[3])))
            start, end = ends

        def draw(figure: Figure, height: float) -> None:
            figure.add_artist(
                Line2D(
                    [start[0] / self.width, end[0] / self.width],
                    [1 - start[1] / height, 1 - end[1] / height],
                    color=colour,
                    linewidth=points,
                    alpha=opacity,
                    solid_capstyle="butt",
                )
            )

        self._steps.append(draw)

    def dot(self, x: float, y: float, label: str, colour: str) -> None:
        """Place a filled circle with a short label in it, centred on a point."""
        across = 0.23

        def draw(figure: Figure, height: float) -> None:
            centre = (x / self.width, 1 - y / height)
            figure.add_artist(
                Ellipse(
                    centre,
                    across / self.width,
                    across / height,
                    facecolor=colour,
                    edgecolor="white",
                    linewidth=1.2,
                )
            )
            figure.text(
                *centre,
                label,
                color="white",
                fontsize=8,
                fontweight="bold",
                ha="center",
                va="center_baseline",
            )

        self._steps.append(draw)

    def save(self, file: BinaryIO, *, height: float) -> None:
        """Draw everything on a sheet of this height, in inches, and write it as PNG."""
        figure = Figure(figsize=(self.width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        for draw in self._steps:
            draw(figure, height)
        figure.savefig(file, format="png", dpi=DPI)
