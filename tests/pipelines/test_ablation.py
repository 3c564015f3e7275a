"""The ablation: what differs between its trainings, and its figures."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny import SMALL, tiny_language_model, tiny_store

from devil.config import DecodingConfig, LanguageModelConfig, TrainingConfig
from devil.errors import ConfigError
from devil.evaluation.stored import CONTROLS
from pipelines.protocols.ablation import (
    AblationOptions,
    ablation,
    ablation_table,
    summarise,
    trainings,
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> AblationOptions:
    folder = tmp_path_factory.mktemp("ablation")
    tiny_store(folder, shards=1, rows=12)
    store = str(folder / "store")
    return AblationOptions(
        store=store,
        held_out=store,
        output=str(folder / "output"),
        language_model=LanguageModelConfig(name=str(tiny_language_model(folder / "lm"))),
        translator=SMALL,
        training=TrainingConfig(
            steps=2, batch_size=4, token_dropout=0.5, validation_rows=0, max_caption_tokens=40
        ),
        decoding=DecodingConfig(max_new_tokens=5),
        random=(store, store),
        seeds=(3, 4),
        cpus_per_worker=1,
    )


def test_one_thing_differs_at_a_time(options: AblationOptions) -> None:
    planned = {(name, seed): training for name, seed, training in trainings(options)}
    for name in ("clipcap", "random_backbone"):
        assert [seed for other, seed in planned if other == name] == [3]
    assert len(planned) == 8
    assert len({training.output for training in planned.values()}) == 8
    first = planned["token_and_feature_dropout", 3]
    assert (first.training.token_dropout, first.training.feature_dropout) == (0.5, True)
    assert first.training.seed == 3
    plain = dataclasses.replace(first.training, feature_dropout=False)
    assert planned["token_dropout", 3].training == plain
    plain = dataclasses.replace(plain, token_dropout=0.0)
    assert planned["no_dropout", 3].training == plain
    assert planned["no_dropout", 3].translator == first.translator
    clipcap = planned["clipcap", 3]
    assert clipcap.training == plain
    assert clipcap.layers == ("layer4",)
    assert clipcap.translator == dataclasses.replace(first.translator, tokens_per_layer=10)


def test_options_that_make_no_sense(options: AblationOptions) -> None:
    with pytest.raises(ConfigError, match=r"seeds are \(1, 1\)"):
        trainings(dataclasses.replace(options, seeds=(1, 1)))
    with pytest.raises(ConfigError, match=r"\['half'\]; there are token_and_feature_dropout, "):
        trainings(dataclasses.replace(options, variants=("half",)))


def test_trains_and_scores(options: AblationOptions, capsys: pytest.CaptureFixture[str]) -> None:
    small = dataclasses.replace(options, seeds=(3,), variants=("clipcap",), random=None)
    results = ablation(small)
    assert json.loads((Path(options.output) / "ablation.json").read_text()) == results
    run = results["variants"]["clipcap"]["runs"][0]
    assert run["scores"]["all"] == run["scores"]["layer4"]  # it was given one layer
    assert results["captions_seen"] == 8
    assert list(results["controls"]) == list(CONTROLS)
    printed = capsys.readouterr().out
    assert ablation_table(results).text() in printed
    assert "control: most frequent caption" in printed


def test_means_and_deviations() -> None:
    runs = [
        {"scores": {"all": {"cider": a}, "layer4": {"cider": b}}}
        for a, b in ((1.0, 5.0), (3.0, 5.0))
    ]
    found = summarise(runs)
    assert found["all"] == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert found["layer4"] == {"mean": 5.0, "deviation": 0.0}
    assert summarise(runs[:1])["all"] == {"mean": 1.0}


def test_the_random_control_must_be_of_the_same_pictures(
    options: AblationOptions, tmp_path: Path
) -> None:
    tiny_store(tmp_path, shards=1, rows=10, untrained=True)
    random = str(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"holds other pictures than .* \(0 more, 2 fewer\)"):
        ablation(dataclasses.replace(options, random=(random, random)))


def test_the_random_control_must_be_random(options: AblationOptions) -> None:
    with pytest.raises(ConfigError, match=r"with weights .*--backbone\.weights random"):
        ablation(options)
    assert not list(Path(options.output).glob("*-4"))
