"""Configurations refuse what they do not understand, and survive JSON."""

import dataclasses
import json
from typing import Any

import pytest

from devil.config import (
    BackboneConfig,
    DecodingConfig,
    ExtractionConfig,
    FetchConfig,
    LanguageModelConfig,
    SourceConfig,
    TrainingConfig,
    TranslatorConfig,
    from_dict,
    to_dict,
)
from devil.errors import ConfigError

NAMES = {BackboneConfig: "timm:resnet50", LanguageModelConfig: "gpt2"}
KINDS = [
    *NAMES,
    TranslatorConfig,
    DecodingConfig,
    FetchConfig,
    SourceConfig,
    ExtractionConfig,
    TrainingConfig,
]


def make(kind: type, **fields: Any) -> Any:
    required = {"name": NAMES[kind]} if kind in NAMES else {}
    return kind(**{**required, **fields})


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_json(kind: type) -> None:
    config = make(kind)
    assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config


def test_round_trip_of_other_values() -> None:
    backbone = make(BackboneConfig, layers=("layer3", "layer4"), image_size=96, weights="a/b.pt")
    training = make(TrainingConfig, learning_rate=1, precision="bfloat16", lm_dropout=True)
    for config in (backbone, training):
        again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
        assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_keys(kind: type) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.__name__} has no field \['colour'\]; fields: "):
        from_dict(kind, {**to_dict(make(kind)), "colour": 1})


def test_missing_keys() -> None:
    with pytest.raises(ConfigError, match=r"BackboneConfig needs the field \['name'\]"):
        from_dict(BackboneConfig, {"seed": 1})


@pytest.mark.parametrize(
    ("kind", "field", "value", "needed"),
    [
        (BackboneConfig, "name", 3, "str"),
        (BackboneConfig, "layers", "layer4", r"tuple\[str"),
        (BackboneConfig, "layers", (1, 2), r"tuple\[str"),
        (BackboneConfig, "image_size", "224", r"int \| None"),
        (BackboneConfig, "seed", None, "int"),
        (LanguageModelConfig, "text", "loud", "'verbatim', 'plain'"),
        (TranslatorConfig, "width", 768.0, "int"),
        (TranslatorConfig, "depth", True, "int"),
        (TranslatorConfig, "class_tokens", 1, "bool"),
        (TrainingConfig, "learning_rate", "1e-4", "float"),
        (TrainingConfig, "token_dropout", False, "float"),
        (TrainingConfig, "precision", "float16", "'bfloat16'"),
        (TrainingConfig, "precision", ["auto"], "'bfloat16'"),
    ],
)
def test_wrong_types(kind: type, field: str, value: Any, needed: str) -> None:
    message = rf"{kind.__name__}\.{field} is .*; a value of type .*{needed}"
    with pytest.raises(ConfigError, match=message):
        make(kind, **{field: value})
    with pytest.raises(ConfigError, match=message):
        from_dict(kind, {**to_dict(make(kind)), field: value})


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (BackboneConfig, {"name": "resnet50"}, "LIBRARY:NAME"),
        (BackboneConfig, {"name": "timm:"}, "LIBRARY:NAME"),
        (BackboneConfig, {"name": ":resnet50"}, "LIBRARY:NAME"),
        (BackboneConfig, {"layers": ("a", "b", "a")}, "only once"),
        (BackboneConfig, {"image_size": 15}, "at least 16"),
        (BackboneConfig, {"weights": ""}, "a path"),
        (TranslatorConfig, {"prefix_length": 0}, "prefix_length is 0; allowed: at least 1"),
        (TranslatorConfig, {"width": 770}, "a multiple of 12 heads"),
        (DecodingConfig, {"max_new_tokens": 0}, "max_new_tokens"),
        (DecodingConfig, {"batch_size": -1}, "batch_size"),
        (ExtractionConfig, {"draws": -1}, "draws"),
        (ExtractionConfig, {"feature_dropout": 1.0}, r"\[0, 1\)"),
        (ExtractionConfig, {"feature_dropout": float("nan")}, "feature_dropout is nan"),
        (ExtractionConfig, {"max_pixels": 0}, "max_pixels"),
        (TrainingConfig, {"steps": 0}, "steps"),
        (TrainingConfig, {"token_dropout": -0.1}, "token_dropout"),
        (TrainingConfig, {"learning_rate": 0.0}, "above 0"),
        (TrainingConfig, {"learning_rate": 1e-7}, r"final_learning_rate .*\[0, learning_rate\]"),
        (TrainingConfig, {"weight_decay": float("nan")}, "weight_decay is nan"),
        (TrainingConfig, {"select": "loss", "validation_rows": 0}, "at least 1 with select='loss'"),
        (TrainingConfig, {"select": "cider", "patience": -1}, "patience is -1"),
        (TrainingConfig, {"patience": 2}, "patience is 2; allowed: 0 with select='last'"),
    ],
)
def test_ranges(kind: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(kind, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen(kind: type) -> None:
    config = make(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(kind)[0].name, 1)
