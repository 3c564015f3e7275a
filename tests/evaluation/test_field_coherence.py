"""Captions against the objects around their locations: counted by hand, and with a model."""

from pathlib import Path

import numpy as np
import pytest
from tiny import CAPTIONS, picture, tiny_model

from devil.config import DecodingConfig
from devil.describing import explain_images
from devil.errors import DataError
from devil.evaluation.field_coherence import (
    FieldRow,
    field_coherence,
    field_rows,
    named_matrix,
)
from devil.evaluation.fields import NOTHING, FieldConfig
from devil.evaluation.naming import Naming

CATEGORIES = ("cat", "dog", "owl")
CAT, DOG, OWL = range(3)


def row(named: list[set[int]], cell: list[int], whole: list[int]) -> FieldRow:
    matrix = np.array([[c in names for c in range(3)] for names in named])
    return FieldRow(named=matrix, covered=np.array([cell, whole]))


def test_counted_by_hand() -> None:
    rows = [
        row([{CAT}, {DOG}, set()], cell=[CAT, NOTHING, OWL], whole=[DOG, DOG, DOG]),
        row([{DOG}, {DOG}, {OWL}], cell=[CAT, DOG, OWL], whole=[DOG, DOG, NOTHING]),
    ]
    mean = np.array([False, True, False])
    found = field_coherence(rows, mean, CATEGORIES, ("cell", "whole"))
    cell, whole = found.fields["cell"], found.fields["whole"]
    # Cells with a category: 1st picture 0, 2; 2nd picture 0, 1, 2.
    assert cell.locations == 5 and cell.hits == pytest.approx(3 / 5)
    # The other picture's captions say dog, owl; then cat, dog, nothing.
    assert cell.shuffled == pytest.approx(3 / 5)
    assert cell.mean_feature == pytest.approx(1 / 5)
    # Twice cat, once dog, twice owl.
    assert cell.constant == pytest.approx(2 / 5) and cell.constant_category == "cat"
    assert whole.locations == 5 and whole.hits == pytest.approx(3 / 5)
    assert whole.shuffled == pytest.approx(3 / 5)
    assert whole.constant == 1 and whole.constant_category == "dog" and whole.mean_feature == 1
    # Both fields known and different: 1st picture 0, 2; 2nd picture 0.
    contested = found.contested
    assert contested["cell"].locations == contested["whole"].locations == 3
    assert contested["cell"].hits == pytest.approx(1 / 3)
    assert contested["cell"].shuffled == pytest.approx(2 / 3)
    assert contested["whole"].hits == pytest.approx(1 / 3)
    assert contested["whole"].shuffled == pytest.approx(1 / 3)
    # Neither beats the other picture's captions.
    assert found.best is None
    # A random backbone's captions: dog, nothing, owl; then cat everywhere.
    said = [[{DOG}, set(), {OWL}], [{CAT}, {CAT}, {CAT}]]
    untrained = [row(names, [0] * 3, [0] * 3).named for names in said]
    with_it = field_coherence(rows, mean, CATEGORIES, ("cell", "whole"), untrained=untrained)
    assert with_it.fields["cell"].random_backbone == pytest.approx(2 / 5)
    assert with_it.fields["cell"].hits == cell.hits and cell.random_backbone is None
    rows[1] = row([{DOG}, {DOG}, {OWL}], cell=[DOG, DOG, OWL], whole=[CAT, DOG, NOTHING])
    assert field_coherence(rows, mean, CATEGORIES, ("cell", "whole")).best == "cell"


def test_nothing_to_agree_with() -> None:
    rows = [row([{CAT}], cell=[NOTHING], whole=[DOG])] * 2
    found = field_coherence(rows, np.zeros(3, dtype=bool), CATEGORIES, ("cell", "whole"))
    assert found.fields["cell"].hits is None and found.fields["cell"].locations == 0
    assert found.best is None
    with pytest.raises(DataError, match="two pictures or more; there are 1"):
        field_coherence(rows[:1], np.zeros(3, dtype=bool), CATEGORIES, ("cell", "whole"))


def test_rows_of_a_model_are_its_own_captions(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    decoding = DecodingConfig(max_new_tokens=5)
    images = [picture(CAPTIONS[i], side) for i, side in ((0, 64), (40, 96))]
    said = explain_images(model, images, decoding=decoding)
    letters = sorted(
        {
            w
            for e in said
            for p in e.layers.values()
            for c in p.captions or ()
            for w in c[0].text.split()
            if w.isalpha()
        }
    )
    naming = Naming(letters[:6])
    masks = [{}, {letters[0]: np.ones((96, 96), dtype=bool)}]
    found = field_rows(
        model, images, masks, naming, fields=FieldConfig(sizes=(16,)), decoding=decoding
    )
    assert list(found) == [*model.layers, "all"]
    for layer, rows in found.items():
        for explanation, own in zip(said, rows, strict=True):
            grid = explanation.layers[layer].captions
            assert grid is not None
            texts = [cell.text for line in grid for cell in line]
            assert (own.named == named_matrix(naming, texts)).all()
        assert (rows[0].covered == NOTHING).all() and (rows[1].covered == 0).all()
    some = field_rows(
        model, images, masks, naming, layers="layer2", locations=5, decoding=decoding, seed=3
    )
    assert some["layer2"][0].named.shape == (5, len(naming.categories))
