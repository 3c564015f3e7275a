"""Checks of drawn scenes: which caption is right, and which location lies on which object."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model

from devil.config import DecodingConfig
from devil.data.scenes import scenes
from devil.evaluation.scenes import (
    location_accuracy,
    name_maps,
    names,
    object_shares,
    pointing_game,
)
from devil.images import EvaluationTransform

TRANSFORM = EvaluationTransform(
    resize=100, crop=(100, 100), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
)


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("a small red striped circle on sand", True),
        ("a red circle", True),
        ("a blue star and a red circle", True),
        ("a red star and a blue circle", False),
        ("a red star left of a circle", False),
        ("a red circles", False),
    ],
)
def test_a_caption_must_join_colour_and_kind(caption: str, right: bool) -> None:
    assert names(caption, "red", "circle") is right


def test_shares_follow_the_grid_over_the_seen_region() -> None:
    mask = np.zeros((100, 200), bool)
    mask[0:50, 50:100] = True  # the top left quarter of the centre crop
    shares = object_shares(mask, (2, 2), TRANSFORM)
    np.testing.assert_allclose(shares, [[1, 0], [0, 0]])
    mask[:] = False
    mask[0:25, 50:100] = True
    assert object_shares(mask, (2, 2), TRANSFORM)[0, 0] == pytest.approx(0.5)


def test_scores_of_an_untrained_model_are_near_their_controls(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    drawn = list(scenes(3, seed=0))
    layer = model.layers[-2]
    with torch.inference_mode():
        locations = location_accuracy(
            model, drawn, layer, decoding=DecodingConfig(max_new_tokens=4)
        )
        pointing = pointing_game(name_maps(model, drawn, layer))
    assert locations.accuracy == locations.shuffled == 0.0 and locations.locations > 0
    assert pointing.maps == sum(len(scene.objects) for scene in drawn)
    assert 0 < pointing.chance < 0.3
