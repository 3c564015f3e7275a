"""Explanations for a terminal: captions in a table, maps in shades beside each other."""

import numpy as np
import pytest

from devil.explanation import Caption, Explanation, LayerExplanation, WordScore
from devil.report.text import explanation_text, shades


def caption(text: str) -> Caption:
    return Caption(text=text, log_probability=0.0, tokens=2)


def layer(name: str, grid: tuple[int, int], **changes) -> LayerExplanation:
    rows, columns = grid
    ramp = np.arange(rows * columns, dtype=np.float32).reshape(grid)
    values = {
        "caption": caption(f"of {name}"),
        "captions": None,
        "saliency": {"dog": ramp, "sky": 1 - ramp},
        **changes,
    }
    return LayerExplanation(layer=name, grid=grid, **values)


def explanation(*layers: LayerExplanation) -> Explanation:
    return Explanation(
        image_size=(40, 20),
        region=(0.0, 0.0, 40.0, 20.0),
        layers={layer.layer: layer for layer in layers},
        queries=("dog", "sky"),
        calibration="none",
        model="tiny",
        version="0123456789abcdef",
        source="photo.jpg",
    )


def test_what_is_printed() -> None:
    text = explanation_text(explanation(layer("layer3", (2, 5)), layer("all", (1, 2))))
    assert text == "\n".join(
        [
            "photo.jpg (40 × 20 pixels), tiny 0123456789ab",
            "",
            "Layers: what the mean feature says, and the mean probability of its tokens",
            "  layer   grid       p  caption",
            "  layer3  2 × 5  1.000  of layer3",
            "  all     1 × 2  1.000  of all",
            "",
            "“dog” (none, nats)",
            "layer3         all",
            "0.00 to 9.00   0.00 to 1.00",
            "····░░░░▒▒     ··██",
            "▒▒▓▓▓▓████",
            "",
            "“sky” (none, nats)",
            "layer3          all",
            "−8.00 to 1.00   0.00 to 1.00",
            "████▓▓▓▓▒▒      ██··",
            "▒▒░░░░····",
        ]
    )


def test_locations_that_were_asked_for_alone() -> None:
    words = (None, (WordScore("dog", 2.0), WordScore("cat", -1.5)), None)
    asked = layer("layer3", (1, 3), captions=((None, caption("a dog"), None),), words=(words,))
    lines = explanation_text(explanation(asked)).splitlines()
    start = lines.index("Locations: row and column from the upper left, from 0")
    assert lines[start + 1 : start + 4] == [
        "  layer   location      p  caption  words",
        "  layer3  0, 1      1.000  a dog    dog 2.00, cat −1.50",
        "",
    ]


def test_maps_without_captions_and_captions_without_maps() -> None:
    maps = explanation_text(explanation(layer("layer3", (1, 2), caption=None)))
    assert "Layers" not in maps and "“dog”" in maps
    captions = explanation_text(explanation(layer("layer3", (1, 2), saliency={})))
    assert "of layer3" in captions and "dog" not in captions


def test_maps_that_do_not_fit_stand_below() -> None:
    layers = [layer(f"layer{i}", (1, 8)) for i in range(3)]
    text = explanation_text(explanation(*layers), width=40)
    heads = [line.split() for line in text.splitlines() if line.startswith("layer")]
    assert heads == [["layer0", "layer1"], ["layer2"]] * 2


def test_a_wide_map_keeps_its_peak() -> None:
    values = np.zeros((9, 101), dtype=np.float32)
    values[4, 77] = 1
    lines = shades(values, 60)
    assert max(map(len, lines)) <= 60
    assert sum(line.count("█") for line in lines) == 2
    assert shades(np.ones((1, 3), dtype=np.float32), 80) == ["······"]


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "a\rb", "a\nb"])
def test_captions_cannot_steer_the_terminal(text: str) -> None:
    printed = explanation_text(explanation(layer("layer3", (1, 2), caption=caption(text))))
    assert not set("\x1b\r") & set(printed)
    assert len(printed.splitlines()) == len(
        explanation_text(explanation(layer("layer3", (1, 2)))).splitlines()
    )
