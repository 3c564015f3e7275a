"""The explainer: what clients are told of errors, models that come and go, health."""

from pathlib import Path

import pytest
import ray.serve
import torch
from tiny import encoded, picture, tiny_model

from devil import Explanation
from devil.errors import LayerError
from serve.admission import BusyError
from serve.explainer import Explainer, chosen_device, refusal_of
from serve.schemas import ExplainOptions, Refusal
from serve.settings import Settings

from .conftest import SETTINGS

RED = encoded(picture("a red circle on the left side"))
BRIEF = ExplainOptions(layers=("layer4",), queries=("red",), dense=False, max_new_tokens=5)


def test_what_clients_are_told() -> None:
    asked = refusal_of(LayerError("no layer9"))
    assert asked == Refusal(422, "no layer9", "layers")
    ours = refusal_of(RuntimeError("/home/secret is broken"))
    assert ours.status == 500 and "secret" not in ours.detail
    busy = refusal_of(BusyError(2.5))
    assert (busy.status, busy.retry_after) == (429, 3)


@pytest.mark.usefixtures("address")
def test_models_come_and_go(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2), ("three", 3)):
        tiny_model(tmp_path / name, seed=seed).save_pretrained(tmp_path / name / "model")

    class Watched(Explainer):
        """Tells how many models it holds."""

        async def held(self) -> int:
            import gc

            from serve.reload import ServedModel

            gc.collect()
            return sum(isinstance(found, ServedModel) for found in gc.get_objects())

    names = ("one", "two", "three")
    model = ",".join(f"{name}={tmp_path / name / 'model'}" for name in names)
    settings = Settings(**SETTINGS | {"model": model, "max_models": 2})
    deployment = ray.serve.deployment(Watched, ray_actor_options={"num_cpus": 0})
    handle = ray.serve.run(deployment.bind(settings), name="watched", route_prefix=None)
    versions = []
    for name in (*names, "one"):
        answer = handle.options(multiplexed_model_id=name).explain.remote(name, RED, BRIEF, "a")
        found = answer.result()
        assert isinstance(found, bytes), found
        versions.append(Explanation.from_json(found).version)
        assert handle.held.remote().result() <= 2
    handle.probe.remote().result()
    ray.serve.delete("watched")
    assert versions[0] == versions[3] and len(set(versions)) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_when_asked_for() -> None:
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device=cpu"):
        chosen_device("cuda")
