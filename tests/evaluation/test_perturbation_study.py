"""Insertion and deletion where the model has nothing to say of a picture."""

from pathlib import Path

import pytest
import torch
from tiny import CAPTIONS, picture, tiny_model

from devil.evaluation.class_queries import own_captions
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.perturbation import PerturbationConfig
from devil.evaluation.perturbation_study import (
    PerturbationStudy,
    StudyConfig,
    StudyPicture,
    word_maps,
)
from devil.model import DeViL
from devil.picture_features import image_features


@pytest.fixture
def model(tmp_path: Path) -> DeViL:
    return tiny_model(tmp_path)


def silence(model: DeViL) -> None:
    """Make the end of text the likeliest token everywhere."""
    lm = model.language_model
    end = lm.model.get_output_embeddings().weight[lm.tokenizer.eos_token_id]
    norm = lm.model.get_decoder().ln_f
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.copy_(100 * end)


def test_an_empty_caption_has_a_flat_map(model: DeViL) -> None:
    features = image_features(model, [picture(CAPTIONS[i], seed=i) for i in (0, 30, 60)])
    settings = [MapSetting(layers=("layer3",)), MapSetting(layers=("layer2", "all"))]
    found = word_maps(model, features, [["red circle"], [""], ["blue line"]], settings)
    full = word_maps(model, features, [["red circle"], ["x"], ["blue line"]], settings)
    for setting in settings:
        assert found[setting].shape == full[setting].shape
        assert found[setting][1].unique().numel() == 1
        torch.testing.assert_close(found[setting][[0, 2]], full[setting][[0, 2]])
        assert found[setting][0].std() > 0
    (alone,) = word_maps(model, features, [[""], [" "], [""]], settings[:1]).values()
    assert len(alone) == 3 and alone.unique().numel() == 1


def test_a_study_goes_on_after_an_empty_caption(
    model: DeViL, caplog: pytest.LogCaptureFixture
) -> None:
    silence(model)
    images = [picture(CAPTIONS[i], seed=i) for i in (0, 30)]
    assert own_captions(model, image_features(model, images)) == ["", ""]
    config = StudyConfig(
        settings=("layer3/caption/none", "layer3/name/none"),
        perturbation=PerturbationConfig(steps=3),
        rise_masks=0,
    )
    study = PerturbationStudy(model, config, [f"thing {i}" for i in range(1000)])
    results = study([StudyPicture("a", images[0], images[1]), StudyPicture("b", *images[::-1])])
    assert [result.words for result in results] == ["", ""]
    for result in results:
        for methods in result.curves.values():
            # Both maps are flat, and their pixels go in the order of equals.
            assert methods["DeViL layer3/caption/none"] == methods["DeViL, another picture"]
    assert "caption is empty, so the map is flat: a, b" in caplog.text
