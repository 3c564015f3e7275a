"""The command lines: help made from the dataclasses, and errors without a traceback."""

import importlib
import math
import pickle
import shlex
import sys
from collections.abc import Callable
from typing import Any

import pytest
import ray.train
import tyro

from devil.errors import ConfigError, DataError, LayerError, LossError
from pipelines import audit, extract, quickstart, retrain, train
from pipelines.cli import devil_error, run_script
from pipelines.evaluate import PROTOCOLS
from pipelines.pool import PoolConfig, over_pool

SCRIPTS = {
    "extract": (extract.ExtractOptions, extract.extract, "--extraction.feature-dropout"),
    "train": (train.TrainOptions, train.train, "--training.token-dropout"),
    "retrain": (retrain.RetrainOptions, retrain.retrain, "--gate.margin"),
    "audit": (audit.AuditOptions, audit.audit, "--audit.queries"),
    "quickstart": (quickstart.QuickstartOptions, quickstart.quickstart, "--training-steps"),
}


def run(
    monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str
) -> tuple[type[Any], Callable[[Any], Any]]:
    options, main, _ = SCRIPTS[script]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    run_script(options, main, "what it does")
    return options, main


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_fields(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, script, "--help")
    assert exit.value.code == 0
    assert SCRIPTS[script][2] in capsys.readouterr().out


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_in_a_protocols_docstring_is_understood(protocol: str) -> None:
    module = importlib.import_module(f"pipelines.protocols.{protocol}")
    text = module.__doc__.split(f"pipelines/evaluate.py {protocol} ", 1)[1].split("\n\n")[0]
    arguments = shlex.split(text.replace("\\\n", " "))
    options = tyro.cli(getattr(module, f"{protocol.title()}Options"), args=arguments)
    assert options.output in arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "nowhere", "--store", "s", "--backbone.name", "timm:test_vit"], "no shards"),
        (["train", "nowhere", "--output", "o", "--language-model.name", "./lm"], "feature store"),
        (["audit", "./nowhere", "photos", "--output", "o"], "no pictures at photos"),
    ],
)
def test_errors_say_what_is_wrong_and_write_nothing(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, arguments[0], *arguments[1:])
    assert exit.value.code == 1
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and message in captured
    assert "Traceback" not in captured
    assert list(tmp_path.iterdir()) == []


def test_our_error_is_found_inside_the_frameworks_wrappers() -> None:
    ours = LayerError("no layer")
    try:
        try:
            raise ours
        except LayerError as error:
            raise RuntimeError("a task failed") from error
    except RuntimeError as wrapped:
        assert devil_error(wrapped) is ours
    assert devil_error(RuntimeError("another")) is None
    assert str(pickle.loads(pickle.dumps(DataError("kept")))) == "kept"


def test_our_error_is_found_inside_the_wrapper_of_a_ray_task() -> None:
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("f", "Traceback of the task", ConfigError("smoothing is 2"))
    for error in (wrapped, wrapped.as_instanceof_cause()):
        assert str(devil_error(error)) == "smoothing is 2"
        assert type(devil_error(error)) is ConfigError


def test_our_error_is_found_inside_the_wrappers_of_ray_train() -> None:
    ours = LossError("the loss is nan", loss=math.inf)
    for wrapped in (
        ray.train.ControllerError(ours),
        ray.train.WorkerGroupError("a worker failed", {0: ours}),
    ):
        found = devil_error(pickle.loads(pickle.dumps(wrapped)))
        assert isinstance(found, LossError) and str(found) == "the loss is nan"
        assert found.loss == math.inf
    assert devil_error(ray.train.ControllerError(RuntimeError("another"))) is None


@pytest.mark.parametrize("early", [True, False])
def test_a_workers_error_comes_through_the_pool_as_it_is(early: bool) -> None:
    class Worker:
        def __init__(self) -> None:
            if early:
                raise DataError("no such model")

        def __call__(self, unit: str) -> dict[str, Any]:
            if unit == "bad":
                raise DataError("no such model")
            return {"unit": unit, "rows": 1}

    records = over_pool(["good", "bad"], Worker, {}, PoolConfig(workers=1, cpus_per_worker=1))
    with pytest.raises(DataError, match=r"^no such model$") as caught:
        list(records)
    assert devil_error(caught.value) is caught.value
