"""The command lines: help made from the dataclasses, and errors without a traceback."""

import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from devil.errors import DataError, LayerError
from pipelines import audit, extract, quickstart, train
from pipelines.cli import devil_error, run_script

SCRIPTS = {
    "extract": (extract.ExtractOptions, extract.extract, "--extraction.feature-dropout"),
    "train": (train.TrainOptions, train.train, "--training.token-dropout"),
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
