"""The result type: exact round trips, refusals, and where a grid's cells lie."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from devil.errors import DataError
from devil.explanation import Caption, Explanation, LayerExplanation


def caption(text: str = "a red bird", log_probability: float = -3.1, tokens: int = 4) -> Caption:
    return Caption(text=text, log_probability=log_probability, tokens=tokens)


def layer(name: str, grid: tuple[int, int], queries: tuple[str, ...], seed: int = 0):
    rng = np.random.default_rng(seed)
    rows, columns = grid
    return LayerExplanation(
        layer=name,
        grid=grid,
        caption=caption(),
        captions=tuple(
            tuple(caption(f"at {r} {c}", -rng.random() * 9) for c in range(columns))
            for r in range(rows)
        ),
        saliency={q: rng.normal(-8, 3, grid).astype(np.float32) for q in queries},
    )


def example(**changes) -> Explanation:
    queries = ("a bird", "das Wasser, 水")
    bare = LayerExplanation(layer="all", grid=(1, 1), caption=None, captions=None, saliency={})
    values = {
        "image_size": (400, 200),
        "region": (112.5, 12.5, 287.5, 187.5),
        "layers": {
            "blocks.9": layer("blocks.9", (7, 5), queries),
            "blocks.11": layer("blocks.11", (2, 3), queries, seed=1),
            "all": bare,
        },
        "queries": queries,
        "calibration": "pmi",
        "model": "devil-tiny",
        "version": "0123456789abcdef",
        "source": "bird.jpg",
    }
    return Explanation(**{**values, **changes})


def test_json_round_trip_is_exact():
    before = example()
    after = Explanation.from_json(before.to_json())
    assert after == before
    assert list(after.layers) == ["blocks.9", "blocks.11", "all"]
    for name, original in before.layers.items():
        for query, values in original.saliency.items():
            assert after.layers[name].saliency[query].dtype == np.float32
            assert after.layers[name].saliency[query].tobytes() == values.tobytes()


def test_every_float32_survives_json():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.append(
        values[np.isfinite(values)], np.array([0, -0.0, 1e-45, 3.4028235e38], np.float32)
    )
    one = LayerExplanation(
        layer="x", grid=(1, len(values)), caption=None, captions=None, saliency={"q": values[None]}
    )
    before = example(layers={"x": one}, queries=("q",))
    after = Explanation.from_json(before.to_json())
    assert after.layers["x"].saliency["q"].tobytes() == values.tobytes()


def test_json_is_ascii_and_strict():
    text = example().to_json()
    assert text.isascii()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


def test_equality_looks_into_the_maps():
    one, other = example(), example()
    assert one == other
    other.layers["blocks.11"].saliency["a bird"][1, 2] += 1e-3
    assert one != other


def test_the_image_is_neither_compared_nor_written_but_can_be_given_back():
    picture = Image.new("RGB", (400, 200))
    with_picture = example(image=picture)
    assert with_picture == example()
    assert with_picture.to_dict() == example().to_dict()
    assert Explanation.from_dict(with_picture.to_dict(), image=picture).image is picture


def test_survives_pickling():
    assert pickle.loads(pickle.dumps(example())) == example()


def test_token_probability_is_the_geometric_mean():
    assert caption(log_probability=math.log(0.5 * 0.02), tokens=2).token_probability == (
        pytest.approx(0.1)
    )
    assert caption(log_probability=1e-7, tokens=1).token_probability == 1.0


def damaged(path: tuple, value) -> dict:
    document = json.loads(example().to_json())
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 3, "format_version 3.*reads 2"),
        (("format_version",), True, "format_version True"),
        (("colour",), "red", "unknown keys.*colour"),
        (("layers", 0, "colour"), "red", "unknown keys.*colour"),
        (("layers", 0, "caption", "colour"), "red", "caption has unknown keys.*colour"),
        (("layers", 0, "saliency", "a bird", 0, 0), math.nan, "1 of 35 values are not finite"),
        (("layers", 0, "saliency", "a bird", 0, 0), 1e300, "not finite"),
        (("layers", 0, "saliency", "a bird", 0, 0), "1", "expected a number, found '1'"),
        (("layers", 0, "saliency", "a bird", 0, 0), 10**400, "malformed"),
        (("layers", 0, "saliency", "a bird"), [[1.0]], r"shape \(1, 1\)"),
        (("layers", 0, "saliency", "a bird"), [[1.0], [1.0, 2.0]], "malformed"),
        (("layers", 0, "saliency", "a fish"), [[0.0] * 5] * 7, "a fish.*no query asks for"),
        (("layers", 0, "captions"), [], "rows of"),
        (("layers", 0, "layer"), "all", "one name twice"),
        (("layers", 0, "caption", "log_probability"), math.inf, "must be finite"),
        (("layers", 0, "caption", "tokens"), 0, "the end token alone makes 1"),
        (("layers", 0, "caption", "tokens"), 4.5, "whole number"),
        (("layers",), 3, "malformed"),
        (("calibration",), "magic", "'magic'; it can be none, pmi, mean, contrast"),
        (("region",), [10, 10, 10, 20], "region"),
        (("region",), [400, 0, 500, 100], "outside the picture"),
        (("queries",), ["a", "a"], "one text twice"),
        (("source",), 3, "expected text, found 3"),
    ],
)
def test_damage_is_refused_and_named(path, value, message):
    with pytest.raises(DataError, match=message):
        Explanation.from_json(json.dumps(damaged(path, value)))


@pytest.mark.parametrize("key", sorted(example().to_dict()))
def test_a_missing_key_is_refused(key):
    document = example().to_dict()
    del document[key]
    with pytest.raises(DataError, match=key):
        Explanation.from_dict(document)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_other_text_is_refused(text):
    with pytest.raises(DataError):
        Explanation.from_json(text)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"\(200, 400\)"):
        example(image=Image.new("RGB", (200, 400)))


def test_a_layer_under_another_name_is_refused():
    with pytest.raises(DataError, match=r"'blocks\.9' is filed under the name 'blocks\.8'"):
        example(layers={"blocks.8": example().layers["blocks.9"]})


def test_cells_tile_the_region_of_a_picture_that_is_not_square():
    explanation = example()  # a centre crop of 175 pixels out of 400 x 200; 7 rows, 5 columns
    assert explanation.cell("blocks.9", 0, 0) == (112.5, 12.5, 147.5, 37.5)
    assert explanation.cell("blocks.9", 6, 4) == (252.5, 162.5, 287.5, 187.5)
    assert explanation.cell("blocks.9", 2, 3) == (217.5, 62.5, 252.5, 87.5)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("blocks.1", 0, 0), "no layer 'blocks.1'; there are blocks.9, blocks.11, all"),
        (("blocks.9", 7, 0), r"no location \(7, 0\) in the 7 x 5 grid"),
        (("blocks.9", 0, -1), r"no location \(0, -1\)"),
    ],
)
def test_a_cell_that_does_not_exist_is_refused(place, message):
    with pytest.raises(DataError, match=message):
        example().cell(*place)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().model = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_it_needs_neither_torch_nor_the_drawing_libraries():
    program = (
        "import sys, devil.explanation;"
        "print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
