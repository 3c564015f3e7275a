"""Explanations as one self-contained HTML page: words at every location, heat maps, results.

The page carries its pictures (JPEG), its numbers (the JSON of each explanation, unchanged) and its
script, and asks the network for nothing: a content security policy forbids it. Text comes escaped
out of Jinja; data sits in script tags in which `<`, `>` and `&` are written as JSON escapes. Heat
maps are drawn by the page itself from the numbers, when a picture comes into view. Colours and
geometry are those of `heatmap`; measuring what the tables show is left to `devil.evaluation`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from devil.explanation import Caption, Explanation
from devil.files import write_atomically
from devil.report.heatmap import colour_table
from devil.report.table import ReportTable, cell_text

IMAGE_SIDE = 448
"""Pictures are embedded no larger than this, in pixels."""

JPEG_QUALITY = 85

TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("palette.css", "report.css")
SCRIPTS = ("geometry.js", "drawing.js", "report.js")

MEASURES = {
    "none": "The log-probability of the words at each location, in nats.",
    "pmi": "The log-probability of the words at each location minus that at the layer's mean "
    "feature, in nats: above zero, the location makes the words likelier than usual.",
    "mean": "The log-probability of the words at each location, averaged over their tokens, in "
    "nats per token.",
    "contrast": "The log-probability of the words at each location set against that of the other "
    "words asked for, in nats.",
}
"""What a saliency map shows, by calibration."""


def explanation_html(explanation: Explanation) -> str:
    """One explanation as a page of its own."""
    return report_html(
        title=explanation.source or "What the layers see", explanations=[explanation]
    )


def report_html(
    *,
    title: str,
    introduction: str = "",
    tables: Sequence[ReportTable] = (),
    explanations: Iterable[Explanation] = (),
    notes: Sequence[str] = (),
) -> str:
    """A report on many pictures as one page.

    Args:
        title: of the page.
        introduction: paragraphs, separated by empty lines.
        tables: results, shown above the pictures.
        explanations: one card each, in this order.
        notes: limits, settings, what was skipped; a list at the end.
    """
    cards = [_card(number, e) for number, e in enumerate(explanations, start=1)]
    style = "".join(map(_template_text, STYLES))
    script = "".join(["(() => {\n", *map(_template_text, SCRIPTS), "})();\n"])
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            paragraphs=[p for p in introduction.split("\n\n") if p.strip()],
            tables=tables,
            cards=cards,
            notes=notes,
            measures=sorted({MEASURES[card["explanation"].calibration] for card in cards}),
            models=sorted({(c["explanation"].model, c["explanation"].version) for c in cards}),
            style=Markup(style),
            style_hash=_digest(style),
            script=Markup(script),
            script_hash=_digest(script),
            colours=colour_table().tobytes().hex(),
        )
    )


def write_report(
    folder: str | PathLike[str],
    *,
    title: str,
    introduction: str = "",
    tables: Sequence[ReportTable] = (),
    explanations: Iterable[Explanation] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write `report_html` to `index.html` in a folder, made if need be; returns the file."""
    page = report_html(
        title=title,
        introduction=introduction,
        tables=tables,
        explanations=explanations,
        notes=notes,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(folder / "index.html", page.encode("utf-8", errors="replace"))


def script_json(text: str) -> Markup:
    """JSON made safe inside a script tag: no character in it can end the tag or open another."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _card(number: int, explanation: Explanation) -> dict[str, Any]:
    layers = list(explanation.layers.values())
    spoken = [layer.caption.text for layer in layers if layer.caption is not None]
    name = explanation.source or f"Picture {number}"
    return {
        "number": number,
        "name": name,
        "explanation": explanation,
        "layers": layers,
        "image": _data_uri(explanation),
        "shown": _fitted(explanation.image_size, grow=True),
        "alt": f"{name}, which the model describes as: {spoken[-1]}" if spoken else name,
        "data": script_json(explanation.to_json()),
        "has_locations": any(layer.captions is not None for layer in layers),
    }


def _data_uri(explanation: Explanation) -> str:
    """The picture as a JPEG; a plain grey one of the same shape if it was not kept."""
    image = explanation.image
    if image is None:
        image = Image.new("RGB", (1, 1), (128, 128, 128)).resize(_fitted(explanation.image_size))
    image = image.convert("RGB")
    fitted = _fitted(image.size)
    if fitted != image.size:
        image = image.resize(fitted, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _fitted(size: tuple[int, int], *, grow: bool = False) -> tuple[int, int]:
    """The size with its longer side at most `IMAGE_SIDE`, or exactly that with `grow`."""
    share = IMAGE_SIDE / max(size)
    share = share if grow else min(1.0, share)
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, cell=cell_text)
    return environment


def _template_text(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _digest(text: str) -> str:
    """The source expression by which the page's policy admits this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _percent(caption: Caption) -> str:
    share = 100 * caption.token_probability
    return f"{share:.0f} %" if share >= 9.5 else f"{share:.1f} %"
