"""The PNG: what it says, where its dots lie, and that every size of explanation fits."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from devil.explanation import Caption, Explanation, LayerExplanation
from devil.report import figure
from devil.report.sheet import Sheet, Style

PLAIN = Style(10, "sans-serif", "black")


def explanation(
    layers: int = 2,
    queries: int = 2,
    *,
    text: str = "a bird on a branch",
    size: tuple[int, int] = (120, 80),
    image: bool = True,
) -> Explanation:
    names = tuple(f"query {i}" for i in range(queries))
    rng = np.random.default_rng(0)

    def said(i: int) -> Caption:
        return Caption(text=f"{text} {i}", log_probability=-4.0 - i, tokens=5)

    return Explanation(
        image_size=size,
        region=(20.0, 0.0, 100.0, 80.0),
        layers={
            f"blocks.{n}": LayerExplanation(
                layer=f"blocks.{n}",
                grid=(4, 4),
                caption=said(n),
                captions=tuple(tuple(said(4 * r + c) for c in range(4)) for r in range(4)),
                saliency={q: rng.normal(size=(4, 4)).astype(np.float32) for q in names},
            )
            for n in range(layers)
        },
        queries=names,
        calibration="none",
        model="m",
        version="v",
        source=f"{text}.jpg",
        image=Image.new("RGB", size, (200, 60, 60)) if image else None,
    )


@pytest.mark.parametrize(("layers", "queries"), [(0, 0), (1, 0), (1, 8), (6, 1)])
@pytest.mark.parametrize("image", [True, False])
def test_any_number_of_layers_and_queries_is_drawn(tmp_path, layers, queries, image):
    path = explanation(layers, queries, image=image).to_png(tmp_path / "x.png")
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == 1800
        pixels = np.asarray(drawn.convert("RGB"))
    margin = 40  # nothing is drawn over the edge of the sheet
    for edge in (pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:]):
        assert (edge == 255).all()


def test_long_captions_make_the_sheet_taller():
    heights = [
        Image.open(io.BytesIO(figure.render_png(explanation(2, 1, text=t)))).height
        for t in ("short", "a long caption that goes on and on " * 4)
    ]
    assert heights[1] > heights[0] + 300


@pytest.mark.parametrize("text", [r"costs $5 \frac{ and $x^", "", "x" * 300, "<b>&amp;</b>\n\t{}"])
def test_text_is_taken_literally(text):
    assert figure.render_png(explanation(1, 1, text=text)).startswith(b"\x89PNG")


def test_queries_are_cut_where_they_are_long():
    assert figure._quoted("d" * 80) == f"“{'d' * 80}”"
    assert figure._quoted("d" * 81) == f"“{'d' * 79}…”"


def test_the_picture_is_bright_in_its_region_and_dark_outside():
    drawn = Image.open(io.BytesIO(figure.render_png(explanation(0, 0)))).convert("RGB")
    pixels = np.asarray(drawn).astype(int)
    bright = (abs(pixels - (200, 60, 60)) <= 2).all(axis=2)
    dark = (abs(pixels - (100, 30, 30)) <= 2).all(axis=2)
    per_pixel = figure.PICTURE * 150 / 120
    left = figure.MARGIN * 150
    bright_columns = np.nonzero(bright.any(axis=0))[0]
    dark_columns = np.nonzero(dark.any(axis=0))[0]
    assert bright_columns[0] == pytest.approx(left + 20 * per_pixel, abs=2)
    assert bright_columns[-1] == pytest.approx(left + 100 * per_pixel, abs=2)
    assert dark_columns[0] == pytest.approx(left, abs=2)
    assert dark_columns[-1] == pytest.approx(left + 120 * per_pixel, abs=2)


def test_dots_are_the_surest_captions_that_differ_and_lie_apart():
    def row(*words: tuple[str, float]) -> tuple[Caption, ...]:
        return tuple(Caption(text=w, log_probability=math.log(p), tokens=1) for w, p in words)

    layer = LayerExplanation(
        layer="x",
        grid=(2, 4),
        caption=None,
        captions=(
            row(("sky", 0.5), ("cloud", 0.1), ("sky", 0.9), ("bird", 0.2)),
            row(("grass", 0.4), ("grass", 0.3), ("dog", 0.8), ("sky", 0.6)),
        ),
        saliency={},
    )
    found = [
        (place.row, place.column, place.caption.text) for place in figure.chosen_locations(layer)
    ]
    assert found == [(0, 1, "cloud"), (0, 2, "sky"), (0, 3, "bird"), (1, 0, "grass"), (1, 2, "dog")]
    best = [place.caption.text for place in figure.chosen_locations(layer, count=2)]
    assert best == ["sky", "dog"]


def test_wrapped_lines_fit_and_lose_nothing():
    sheet = Sheet(5)
    text = "the quick brown fox " + "x" * 90 + " jumps over it"
    lines = sheet.wrap(text, 1.5, PLAIN)
    assert len(lines) > 5
    assert all(sheet.measure(line, PLAIN) <= 1.5 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr("devil.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        explanation(1, 0).to_png(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    assert path.read_bytes() == b"old"
