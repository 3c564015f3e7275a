"""Batches without a cluster: grouping, and errors that stay with the item that caused them."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture

from devil import DeViL, Explanation
from serve.explainer import Item, chosen_device, explain_batch
from serve.schemas import Options, Refusal

RED = picture("a red circle on the left side")
BLUE = picture("a blue square on the top side")
BRIEF = Options(layers=("layer4",), queries=("red",), dense=False, max_new_tokens=5)


def item(image: Image.Image, options: Options = BRIEF, seconds: float = 60) -> Item:
    return Item(image, options, time.monotonic() + seconds)


def test_answers_are_in_order_and_equal_options_share_a_pass(model: DeViL) -> None:
    other = BRIEF.model_copy(update={"layers": ("layer2",)})
    passes = []
    assert model.backbone is not None
    hook = model.backbone.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    items = [item(RED), item(BLUE, other), item(BLUE), item(RED, other), item(RED)]
    answers = explain_batch(model, items)
    hook.remove()
    assert passes == [3, 2]
    for (image, options, _), answer in zip(items, answers, strict=True):
        assert isinstance(answer, bytes)
        found = Explanation.from_json(answer)
        alone = model.explain(
            image, layers=options.layers, queries=options.queries, dense=options.dense
        )
        (layer,) = options.layers or ()
        np.testing.assert_allclose(
            found.layers[layer].saliency["red"], alone.layers[layer].saliency["red"], atol=1e-4
        )


def test_a_wrong_option_refuses_its_group_alone(model: DeViL) -> None:
    wrong = BRIEF.model_copy(update={"layers": ("layer9",)})
    good, first, second = explain_batch(model, [item(RED), item(RED, wrong), item(BLUE, wrong)])
    assert isinstance(good, bytes)
    assert isinstance(first, Refusal) and first == second
    assert (first.status, first.field) == (422, "layers")
    assert "layer2, layer3, layer4, all" in first.detail


def test_one_bad_picture_does_not_fail_its_group(model: DeViL) -> None:
    thin = Image.new("RGB", (2, 64))  # would have been refused before; fails inside the pass
    first, refused, last = explain_batch(model, [item(RED), item(thin), item(BLUE)])
    assert isinstance(first, bytes) and isinstance(last, bytes)
    assert isinstance(refused, Refusal) and refused.field == "image"


def test_faults_of_ours_are_not_told(model_folder: Path) -> None:
    (refused,) = explain_batch(
        DeViL.from_pretrained(model_folder, load_backbone=False), [item(RED)]
    )
    assert isinstance(refused, Refusal)
    assert refused.status == 500 and "backbone" not in refused.detail


def test_nobody_waits_for_late_items(model: DeViL) -> None:
    late, good = explain_batch(model, [item(RED, seconds=-1), item(RED)])
    assert isinstance(late, Refusal) and late.status == 503
    assert isinstance(good, bytes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_when_asked_for() -> None:
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device=cpu"):
        chosen_device("cuda")
