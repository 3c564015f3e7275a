"""Copies of what the library defines stay copies; settings; how the package imports Ray."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import serve
from devil import DecodingConfig, DeViL
from devil.errors import ModelFolderError
from devil.images import MAX_PIXELS
from devil.saliency import Calibration
from serve.app import app
from serve.schemas import CaptionOptions, ExplainOptions, SaliencyOptions
from serve.settings import Settings

FILES = sorted(Path(serve.__file__).parent.glob("**/*.py"))


def test_options_are_those_of_the_python_api() -> None:
    options = ExplainOptions.model_fields
    assert options["calibration"].annotation is not None
    assert get_args(options["calibration"].annotation) == get_args(Calibration)
    parameters = inspect.signature(DeViL.explain).parameters
    shared = set(options) - {"max_new_tokens", "model", "keep"}
    assert shared == set(parameters) - {"self", "image", "decoding", "captions"}
    for name in shared:
        assert options[name].default == parameters[name].default
    assert options["max_new_tokens"].default == DecodingConfig().max_new_tokens


def test_layers_count_once_and_in_order() -> None:
    assert ExplainOptions(layers=("layer4", "all", "layer4")).layers == ("layer4", "all")
    assert ExplainOptions(layers=()).layers == ()
    assert ExplainOptions().layers is None


def test_questions_ask_what_the_route_is_for() -> None:
    whole = ExplainOptions(queries=("dog",), points=((0.5, 0.25),), words=3).question()
    assert (whole.queries, whole.points, whole.words) == (("dog",), ((0.5, 0.25),), 3)
    assert whole.captions and not whole.everywhere
    assert CaptionOptions().question().everywhere
    maps = SaliencyOptions(queries=("dog",)).question()
    assert not maps.captions and not maps.everywhere
    with pytest.raises(ValidationError):
        SaliencyOptions(queries=())
    form = ExplainOptions.model_validate({"points": ("0.5,0.25", "1,0")})
    assert form.points == ((0.5, 0.25), (1.0, 0.0))
    for wrong in ("0.5", "0.5,2", "nan,0", "1,1,1"):
        with pytest.raises(ValidationError):
            ExplainOptions.model_validate({"points": (wrong,)})


def test_settings_come_from_text_and_are_checked() -> None:
    settings = Settings.model_validate({"model": "m", "turn_locations": "4", "replicas": "2"})
    assert (settings.turn_locations, settings.replicas) == (4, 2)
    with pytest.raises(ValidationError, match="modle"):
        Settings.model_validate({"modle": "m"})
    with pytest.raises(ValidationError, match="max_pixels"):
        Settings(max_pixels=MAX_PIXELS + 1)
    assert Settings(max_pixels=MAX_PIXELS).max_pixels == MAX_PIXELS


def test_a_missing_model_folder_is_told_before_anything_starts() -> None:
    with pytest.raises(ModelFolderError, match="make demo"):
        app(Settings(model="runs/nothing/here"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ray_is_imported_in_full(file: Path) -> None:
    # `from ray import serve` would hide this package behind Ray's.
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "ray", ast.unparse(node)
        if isinstance(node, ast.Import):
            assert not any(a.asname for a in node.names if a.name.startswith("ray"))


def test_the_ingress_does_not_load_torch() -> None:
    program = "import sys, serve.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0
