"""Drafts: rows that are read in any cut and order give the same explanation."""

import random
from pathlib import Path

import pytest
import tiny

from devil import DeViL, Explanation
from devil.config import DecodingConfig
from devil.draft import Draft, prepare
from devil.errors import LayerError, QueryError
from devil.picture_features import image_features, of_picture
from devil.question import Question
from devil.reading import read_rows

DECODING = DecodingConfig(max_new_tokens=6)
QUESTIONS = (
    Question(queries=("circle", "red square"), words=3),
    Question(layers=("layer4",), points=((0.2, 0.9), (0.99, 0.01)), words=2),
    Question(queries=("circle", "line"), calibration="contrast", captions=False),
    Question(queries=("circle",), points=((0.5, 0.5),), prompt="a red", smoothing=3),
    Question(dense=False),
    Question(captions=False, words=4, calibration="none"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeViL:
    return tiny.tiny_model(tmp_path_factory.mktemp("model"))


def drafts(model: DeViL, question: Question, count: int = 2) -> list[Draft]:
    pictures = [tiny.picture(caption) for caption in tiny.CAPTIONS[:count]]
    features = image_features(model, pictures)
    asked = prepare(model, question)
    return [
        Draft(model, of_picture(features, i), picture.size, asked)
        for i, picture in enumerate(pictures)
    ]


def assert_same(one: Explanation, other: Explanation) -> None:
    """Equal texts and words; numbers within float32."""
    for name, layer in one.layers.items():
        found = other.layers[name]
        for a, b in zip(_captions(layer), _captions(found), strict=True):
            assert (a and (a.text, a.tokens)) == (b and (b.text, b.tokens))
            assert a is None or a.log_probability == pytest.approx(b.log_probability, abs=1e-3)
        for query, values in layer.saliency.items():
            assert values == pytest.approx(found.saliency[query], abs=1e-3)
        assert (layer.words is None) == (found.words is None)
        for row, other_row in zip(layer.words or (), found.words or (), strict=True):
            for cell, other_cell in zip(row, other_row, strict=True):
                assert (cell is None) == (other_cell is None)
                scores = [word.score for word in cell or ()]
                assert scores == pytest.approx([w.score for w in other_cell or ()], abs=1e-3)


def _captions(layer):
    return [layer.caption, *(caption for row in layer.captions or () for caption in row)]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_any_cut_gives_the_same(model: DeViL, question: Question, seed: int) -> None:
    whole = drafts(model, question)
    read_rows(model, [rows for d in whole for rows in d.take(d.rows)], DECODING)
    chance = random.Random(seed)
    cut = drafts(model, question)
    while open_drafts := [draft for draft in cut if draft.waiting]:
        chance.shuffle(open_drafts)
        taken = [rows for draft in open_drafts for rows in draft.take(chance.randint(0, 7))]
        chance.shuffle(taken)
        read_rows(model, taken, DECODING)
    for one, other in zip(whole, cut, strict=True):
        assert other.finished and other.waiting == 0
        assert_same(one.explanation(), other.explanation())


def test_points_tell_what_the_whole_grid_tells_there(model: DeViL) -> None:
    picture = tiny.picture(tiny.CAPTIONS[1], side=90)
    points = [(0.1, 0.2), (0.95, 0.5)]
    whole = model.explain(picture, words=3, decoding=DECODING)
    some = model.explain(picture, points=points, words=3, decoding=DECODING)
    for name, layer in some.layers.items():
        rows, columns = layer.grid
        cells = {
            (row, column)
            for row in range(rows)
            for column in range(columns)
            for left, top, right, bottom in [some.cell(name, row, column)]
            if any(left <= 90 * x < right and top <= 90 * y < bottom for x, y in points)
        }
        assert len(cells) == 2
        assert layer.captions is not None and layer.words is not None
        for row in range(rows):
            for column in range(columns):
                caption, words = layer.captions[row][column], layer.words[row][column]
                assert (caption is not None) == (words is not None) == ((row, column) in cells)
                if caption is not None and words is not None:
                    expected = whole.layers[name]
                    assert caption.text == expected.captions[row][column].text
                    assert [w.word for w in words] == [w.word for w in expected.words[row][column]]
                    assert len(words) == 3


def test_words_are_those_of_vocabulary_saliency(model: DeViL) -> None:
    picture = tiny.picture(tiny.CAPTIONS[0])
    for calibration in ("pmi", "none"):
        found = model.explain(
            picture, words=4, captions=False, calibration=calibration, prompt="a red"
        )
        maps = model.vocabulary_saliency(picture, top=4, calibration=calibration, prompt="a red")
        for name, layer in found.layers.items():
            assert layer.caption is None and layer.captions is None
            for row, other in zip(layer.words, maps[name].top, strict=True):
                for cell, expected in zip(row, other, strict=True):
                    assert [w.score for w in cell] == pytest.approx(
                        [w.score for w in expected], abs=1e-3
                    )


def test_an_explanation_of_points_survives_json_and_drawing(model: DeViL, tmp_path: Path) -> None:
    found = model.explain(
        tiny.picture(tiny.CAPTIONS[0]),
        points=[(0.5, 0.5)],
        words=2,
        queries=["circle"],
        decoding=DECODING,
    )
    assert Explanation.from_json(found.to_json()) == found
    assert found.to_png(tmp_path / "points.png").stat().st_size > 1000
    assert "</html>" in found.to_html()


def test_what_cannot_be_asked() -> None:
    with pytest.raises(QueryError, match=r"point \(0.5, 1.5\) lies outside"):
        Question(points=((0.5, 1.5),))
    with pytest.raises(QueryError, match=r"point \(nan, 0\)"):
        Question(points=((float("nan"), 0),))
    with pytest.raises(QueryError, match="words is -1"):
        Question(words=-1)


def test_questions_are_checked_against_the_model(model: DeViL) -> None:
    with pytest.raises(LayerError, match="layer9"):
        prepare(model, Question(layers=("layer9",)))
    with pytest.raises(QueryError, match="contrast"):
        prepare(model, Question(queries=("circle",), calibration="contrast"))
