"""Central captions against centre crops: vectors by hand, and a tiny model with a tiny judge."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import CAPTIONS, picture, tiny_image_text_model, tiny_model

from devil.config import DecodingConfig
from devil.describing import explain_images
from devil.errors import ConfigError, DataError
from devil.evaluation.crops import (
    centre_crops,
    crop_coherence,
    crop_rows,
    crop_sizes,
    input_picture,
)
from devil.evaluation.image_text import ImageTextConfig, ImageTextModel
from devil.evaluation.location_captions import central_location, drawn_locations
from devil.images import EvaluationTransform


def test_sizes_end_with_the_whole() -> None:
    assert crop_sizes((64, 32, 64), 224) == (32, 64, 224)
    assert crop_sizes((), 64) == (64,)
    with pytest.raises(ConfigError, match=r"sizes \[0, 64\] are not between 1 and 63"):
        crop_sizes((0, 8, 64), 64)


def test_crops_are_centred_parts_of_the_input() -> None:
    transform = EvaluationTransform(
        resize=32, crop=(32, 32), interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    image = picture(CAPTIONS[3], 32)
    seen = input_picture(transform, transform(image))
    assert np.array_equal(np.asarray(seen), np.asarray(image))
    small, whole = centre_crops(seen, (8, 32))
    assert np.array_equal(np.asarray(small), np.asarray(image)[12:20, 12:20])
    assert np.array_equal(np.asarray(whole), np.asarray(image))


@pytest.mark.parametrize(
    ("grid", "location"), [((1, 1), 0), ((3, 3), 4), ((4, 4), 5), ((5, 3), 7), ((2, 6), 2)]
)
def test_central_location(grid: tuple[int, int], location: int) -> None:
    assert central_location(grid) == location
    rows, columns = grid
    distance = [
        (r - (rows - 1) / 2) ** 2 + (c - (columns - 1) / 2) ** 2
        for r in range(rows)
        for c in range(columns)
    ]
    assert distance.index(min(distance)) == location


def test_drawn_locations() -> None:
    assert drawn_locations((2, 3), 0, 0) == drawn_locations((2, 3), 9, 0) == list(range(6))
    some = drawn_locations((14, 14), 49, 1)
    assert some == sorted(set(some)) and len(some) == 49 and some[-1] < 196
    assert some == drawn_locations((14, 14), 49, 1) != drawn_locations((14, 14), 49, 2)


def test_scores_by_hand() -> None:
    # Each picture's crops are the axes; the texts of the layer "near" say the first axis, those of
    # "far" the second for picture 0 and the third for picture 1.
    crops = np.stack([np.eye(3), np.eye(3)])
    far = np.array([[0, 0.8, 0.6], [0, 0.6, 0.8]])
    texts = np.stack([np.tile([1.0, 0, 0], (2, 1)), far], axis=1)
    means = np.array([[0, 0, 1.0], [0.6, 0.8, 0]])
    found = crop_coherence(crops, texts, means, layers=("near", "far"), sizes=(8, 16, 64))
    near, far_score = found["near"], found["far"]
    assert near.own.best == (1, 0, 0) and near.own.mean_best == 8
    assert near.own.similarity == pytest.approx((1, 0, 0))
    assert near.mean_feature.best == (0, 0, 1) and near.mean_feature.mean_best == 64
    assert far_score.own.best == (0, 0.5, 0.5) and far_score.own.mean_best == 40
    assert far_score.own.similarity == pytest.approx((0, 0.7, 0.7))
    assert far_score.mean_feature.similarity == pytest.approx((0.6, 0.8, 0))
    assert near.random_backbone is None
    swapped = texts[:, ::-1]
    beside = crop_coherence(
        crops, texts, means, layers=("near", "far"), sizes=(8, 16, 64), untrained=swapped
    )
    assert beside["near"].random_backbone == far_score.own and beside["near"].own == near.own
    # Turned pictures tell own captions from others'.
    crops = np.stack([np.eye(3), np.roll(np.eye(3), 1, axis=0)])
    turned = crop_coherence(crops, texts, means, layers=("near", "far"), sizes=(8, 16, 64))["far"]
    assert turned.own.best == (0.5, 0.5, 0)
    assert turned.own.mean_best == np.mean([16, 8])
    assert turned.shuffled.mean_best == np.mean([64, 64])
    with pytest.raises(DataError, match="two pictures or more; there are 1"):
        crop_coherence(crops[:1], texts[:1], means, layers=("a", "b"), sizes=(8, 16, 64))


def test_rows_of_a_model(tmp_path: Path) -> None:
    model, decoding = tiny_model(tmp_path), DecodingConfig(max_new_tokens=5)
    assert model.backbone is not None
    judge = ImageTextModel(ImageTextConfig(name=tiny_image_text_model(tmp_path / "clip")))
    images: list[Image.Image] = [picture(CAPTIONS[i], side) for i, side in ((0, 64), (40, 96))]
    rows = crop_rows(model, judge, images, sizes=(16, 32), decoding=decoding)
    said = explain_images(model, images, decoding=decoding)
    for image, row, explanation in zip(images, rows, said, strict=True):
        for caption, part in zip(row.captions, explanation.layers.values(), strict=True):
            assert part.captions is not None
            r, c = (side - 1 for side in part.grid)
            assert caption == part.captions[r // 2][c // 2].text
        texts = judge.texts(row.captions).numpy()
        assert np.allclose(row.texts, texts, atol=1e-5)
        seen = input_picture(model.backbone.transform, model.backbone.transform(image))
        boxes = [(24, 24, 40, 40), (16, 16, 48, 48), (0, 0, 64, 64)]
        expected = judge.images([seen.crop(box) for box in boxes]).numpy()
        assert np.allclose(row.crops, expected, atol=1e-5)
