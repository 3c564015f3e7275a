"""Batches: what shares a pass of the model, and errors that stay with the item that caused them."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import ray.serve
import ray.serve.handle
import torch
from PIL import Image
from tiny import encoded, picture

from devil import DeViL, Explanation
from serve.explainer import Explainer, Item, chosen_device, explain_batch
from serve.schemas import Options, Refusal
from serve.settings import Settings

from .conftest import SETTINGS

RED = picture("a red circle on the left side")
BLUE = picture("a blue square on the top side")
BRIEF = Options(layers=("layer4",), queries=("red",), dense=False, max_new_tokens=5)


def item(image: Image.Image, options: Options = BRIEF) -> Item:
    return Item(image, options)


def test_answers_are_in_order_and_equal_options_share_a_pass(model: DeViL) -> None:
    other = BRIEF.model_copy(update={"layers": ("layer2",)})
    passes = []
    assert model.backbone is not None
    hook = model.backbone.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    items = [item(RED), item(BLUE, other), item(BLUE), item(RED, other), item(RED)]
    answers = explain_batch(model, items)
    hook.remove()
    assert passes == [3, 2]
    for (image, options), answer in zip(items, answers, strict=True):
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


@pytest.mark.usefixtures("address")
def test_what_comes_while_a_batch_runs_shares_the_next(model_folder: Path) -> None:
    class Held(Explainer):
        """Counts the pictures of each pass, and holds the first one until it is let go."""

        def __init__(self, settings: Settings) -> None:
            super().__init__(settings)
            self.passes: list[int] = []
            self.let_go = threading.Event()
            assert self.model.backbone is not None
            self.model.backbone.register_forward_pre_hook(self.hold)

        def hold(self, _: object, given: tuple[torch.Tensor]) -> None:
            self.passes.append(len(given[0]))
            self.let_go.wait()

        async def counted(self, *, let_go: bool = False) -> list[int]:
            if let_go:
                self.let_go.set()
            return self.passes

    settings = Settings(model=str(model_folder), **SETTINGS | {"batch_wait_seconds": 0})
    deployment = ray.serve.deployment(Held, max_ongoing_requests=settings.max_ongoing)
    handle = ray.serve.run(deployment.bind(settings), name="held", route_prefix=None)

    async def ask_all() -> list[bytes | Refusal]:
        answers = []
        for _ in range(4):
            answers.append(asyncio.ensure_future(_answer(handle)))
            while await handle.counted.remote() != [1]:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
        await handle.counted.remote(let_go=True)
        return await asyncio.gather(*answers)

    answers = asyncio.run(ask_all())
    passes = handle.counted.remote().result()
    ray.serve.delete("held")
    assert all(isinstance(answer, bytes) for answer in answers)
    assert passes == [1, 3]


async def _answer(handle: ray.serve.handle.DeploymentHandle) -> bytes | Refusal:
    return await handle.explain.remote(encoded(RED), BRIEF)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_when_asked_for() -> None:
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device=cpu"):
        chosen_device("cuda")
