"""The explainer: what clients are told of errors, models that come and go, health."""

import asyncio
import threading
from pathlib import Path

import pytest
import ray.serve
import ray.serve.context
import torch
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.metrics_utils import MetricsPusher
from ray.serve.context import ReplicaContext
from ray.serve.schema import ReplicaRank
from tiny import encoded, picture, tiny_model

from devil import Explanation
from devil.errors import LayerError
from serve import explainer
from serve.admission import BusyError
from serve.explainer import Explainer, chosen_device, refusal_of
from serve.reload import ServedModel
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


def test_a_load_that_its_requests_gave_up_serves_the_next(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each request that is given up would leave a thread that loads one more copy."""
    copy = ReplicaContext(
        replica_id=ReplicaID("one", DeploymentID("Explainer")),
        servable_object=Explainer,
        _deployment_config=None,  # type: ignore[arg-type]
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )
    monkeypatch.setattr(ray.serve.context, "_INTERNAL_REPLICA_CONTEXT", copy)
    # There is no controller to be told which models are loaded.
    monkeypatch.setattr(MetricsPusher, "register_or_update_task", lambda *_: None)
    loads: list[str] = []
    go = threading.Event()

    class Slow(ServedModel):
        def __init__(self, folder: str, device: str, reload_seconds: float) -> None:
            loads.append(folder)
            assert go.wait(60)
            super().__init__(folder, device, reload_seconds)

    monkeypatch.setattr(explainer, "ServedModel", Slow)

    async def ask() -> bytes | Refusal:
        found = Explainer(Settings(**SETTINGS | {"model": f"one={model_folder}"}))
        try:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await found.explain("one", RED, BRIEF, "a")
        finally:
            go.set()
        return await found.explain("one", RED, BRIEF, "a")

    assert isinstance(asyncio.run(ask()), bytes)
    assert loads == [str(model_folder)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_when_asked_for() -> None:
    assert chosen_device("auto") == chosen_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device=cpu"):
        chosen_device("cuda")
