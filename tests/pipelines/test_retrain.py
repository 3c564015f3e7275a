"""Retraining through real Ray: what is good is released, what is not changes nothing."""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stores import counted, synthetic_store
from tiny import (
    CAPTIONS,
    sample_members,
    tiny_backbone_weights,
    tiny_language_model,
    tiny_model,
    tiny_shards,
    write_tar,
)

from devil.backbones import load_backbone
from devil.backbones.base import weights_digest
from devil.config import (
    BackboneConfig,
    DecodingConfig,
    ExtractionConfig,
    LanguageModelConfig,
    SourceConfig,
    TrainingConfig,
    TranslatorConfig,
)
from devil.data.source import open_source
from devil.data.webdataset import read_shard
from devil.errors import (
    ConfigError,
    FeatureStoreError,
    GateError,
    LayerError,
    LockError,
    ModelFolderError,
)
from devil.evaluation.gate import GateConfig, GateScores, Verdict
from devil.extraction import Extractor
from devil.features import FeatureStore
from devil.files import write_json
from devil.lock import Lock
from devil.manifest import Manifest
from devil.model import DeViL
from devil.versions import ModelVersions
from pipelines.pool import PoolConfig
from pipelines.retrain import (
    RetrainOptions,
    _check_comparison,
    _claim_run,
    _extract_options,
    _prune_runs,
    _release,
    _train_options,
    main,
    retrain,
)

EXTRACTION = ExtractionConfig(draws=3, batch_size=8)
SHARDS, ROWS = 7, 32
"""The last shard is held out; the first half of the others comes first."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, features of the held-out one, a backbone, a language model that writes captions."""
    folder = tmp_path_factory.mktemp("inputs")
    shards = tiny_shards(folder / "every", shards=SHARDS, rows=ROWS, captions=1)
    config = tiny_backbone_weights(folder / "backbone")
    backbone = load_backbone(config)
    manifest = Manifest.of(backbone, config, EXTRACTION)
    held_out = FeatureStore.create(str(folder / "held_out"), manifest)
    last = open_source(shards.pop())
    Extractor(backbone, last, held_out, threads=1)(*last.shards())
    counted(held_out)
    teach_captions(tiny_language_model(folder / "lm"))
    return folder


def teach_captions(folder: str) -> None:
    """Train a tiny language model until it writes captions: some seconds."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    rows = [[end, *tokenizer(caption)["input_ids"], end] for caption in CAPTIONS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(150):
            optimiser.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimiser.step()
    model.save_pretrained(folder)


def options(inputs: Path, work: Path, **changes: Any) -> RetrainOptions:
    values: dict[str, Any] = {
        "shards": str(work / "shards"),
        "store": str(work / "features"),
        "held_out": str(inputs / "held_out"),
        "models": str(work / "models"),
        "backbone": BackboneConfig(
            name="timm:test_resnet",
            weights=str(inputs / "backbone" / "test_resnet.safetensors"),
            layers=("layer2", "layer3", "layer4"),
            image_size=64,
        ),
        "extraction": EXTRACTION,
        "language_model": LanguageModelConfig(name=str(inputs / "lm")),
        "translator": TranslatorConfig(width=32, depth=1, heads=2, feedforward=64, prefix_length=4),
        "training": TrainingConfig(
            steps=300,
            batch_size=16,
            learning_rate=3e-3,
            warmup_steps=10,
            token_dropout=0.1,
            precision="float32",
            max_caption_tokens=32,
            validation_rows=0,
        ),
        "decoding": DecodingConfig(max_new_tokens=16),
        # So short a training ends with a CIDEr of 4 to 6, or 1.3 on other pictures' features.
        "gate": GateConfig(margin=2.0, above_control=1.0),
        "pool": PoolConfig(workers=1, cpus_per_worker=1),
        "cpus_per_worker": 1,
    }
    return RetrainOptions(**(values | changes))


def add_shards(inputs: Path, work: Path, numbers: range) -> None:
    (work / "shards").mkdir(exist_ok=True)
    for number in numbers:
        shutil.copy(inputs / "every" / f"{number:05d}.tar", work / "shards")


def sabotage(inputs: Path, folder: Path) -> None:
    """All training pictures, each with the caption of another."""
    for number in range(SHARDS - 1):
        samples = list(read_shard(str(inputs / "every" / f"{number:05d}.tar")))
        members = []
        for sample, other in zip(samples, samples[5:] + samples[:5], strict=True):
            assert sample.image is not None
            members += sample_members(sample.key, other.captions, sample.image)
        write_tar(folder / f"{number:05d}.tar", members)


def verdict(work: Path) -> dict[str, Any]:
    """The last verdict."""
    paths = (work / "models" / "runs").glob("*/gate.json")
    return json.loads(max(paths, key=lambda path: path.stat().st_mtime_ns).read_text())


def test_the_life_of_a_model(
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    versions, asked = ModelVersions(tmp_path / "models"), options(inputs, tmp_path)
    add_shards(inputs, tmp_path, range(3))

    # Stopped when all but the release is done: the next start releases that model.
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.retrain._release", _stop)
        with pytest.raises(KeyboardInterrupt):
            retrain(asked)
    assert versions.current() is None and verdict(tmp_path)["passed"]
    (weights,) = tmp_path.glob("models/runs/3-shards-*/model/model.safetensors")
    written = weights.stat().st_mtime_ns
    found = retrain(asked)
    assert weights.stat().st_mtime_ns == written
    first = versions.current()
    assert found is not None and first is not None and first.earlier == ()
    assert first.why == json.loads(json.dumps(found.to_dict())) == verdict(tmp_path)
    assert DeViL.from_pretrained(versions.root).version == found.candidate.version

    # Nothing new.
    assert retrain(asked) is None
    assert f"nothing new: these data and options have become version {first.current}" in caplog.text
    assert versions.current() == first

    # More shards make a second version.
    add_shards(inputs, tmp_path, range(3, SHARDS - 1))
    found = retrain(asked)
    second = versions.current()
    assert found is not None and second is not None and second.earlier == (first.current,)
    assert found.current is not None and first.current.endswith(found.current.version[:8])
    assert found.current.keys_hash == found.candidate.keys_hash

    # A model of wrong captions is refused, and its scores are kept.
    sabotage(inputs, tmp_path / "sabotaged")
    wrong = {"shards": str(tmp_path / "sabotaged"), "store": str(tmp_path / "wrong_features")}
    with pytest.raises(GateError, match=f"is not released: .*{second.current} stays current"):
        retrain(options(inputs, tmp_path, **wrong))
    assert versions.current() == second and not verdict(tmp_path)["passed"]

    # The current version's folder is lost: told before the work, with the way out.
    shutil.move(versions.folder(second.current), tmp_path / "lost")
    with pytest.raises(ModelFolderError, match=f"no version {second.current}.*--rollback"):
        retrain(asked)
    shutil.move(tmp_path / "lost", versions.folder(second.current))

    # What was rolled back does not come again by itself.
    main(["--models", str(tmp_path / "models"), "--rollback"])
    back = versions.current()
    assert back is not None and back.current == first.current
    assert retrain(asked) is None
    assert versions.current() == back


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def unlike(model: DeViL, parent: Path) -> DeViL:
    """A copy of a model with other weights, and so another version."""
    model.save_pretrained(parent)
    copy = DeViL.from_pretrained(parent, load_backbone=False)
    with torch.no_grad():
        copy.translator.prefix_tokens += 1
    return copy


def scored(model: DeViL) -> GateScores:
    """Scores of a model, made up."""
    version = weights_digest(model.translator)
    return GateScores(version=version, score=1.0, shuffled=0.1, rows=9, keys_hash="same")


def passed(candidate: DeViL, current: DeViL | None = None) -> Verdict:
    """What the gate says of a model that is good enough."""
    return Verdict(
        passed=True,
        reason="good enough",
        candidate=scored(candidate),
        current=scored(current) if current else None,
        config=GateConfig(),
    )


def test_whoever_lost_the_lock_releases_nothing(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = counted(synthetic_store(tmp_path / "features", [4]))
    model = tiny_model(tmp_path / "frozen")
    asked = options(inputs, tmp_path, held_out=store.root)

    def slow(*_: object) -> DeViL:
        (tmp_path / "models" / "retrain.lock").unlink()  # somebody gave this process up
        return model

    monkeypatch.setattr("pipelines.retrain.extract", lambda _: None)
    monkeypatch.setattr("pipelines.retrain.train", slow)
    monkeypatch.setattr("pipelines.retrain._compare", lambda *_: passed(model))
    with pytest.raises(LockError, match="was lost while it was held here"):
        retrain(asked)
    assert ModelVersions(tmp_path / "models").current() is None


def test_a_release_removes_what_is_more_than_was_to_be_kept(inputs: Path, tmp_path: Path) -> None:
    versions, asked = ModelVersions(tmp_path / "models"), options(inputs, tmp_path, keep=2)
    models = [tiny_model(tmp_path / "frozen")]
    for number in range(2):
        models.append(unlike(models[-1], tmp_path / f"copy{number}"))
    for before, model in zip([None, *models], models, strict=False):
        _release(model, passed(model, before), tmp_path, asked, versions)
    names = [versions.find(weights_digest(model.translator)) for model in models]
    assert names[0] is None and versions.names() == names[1:]


def test_a_second_retraining_is_refused_while_one_runs(inputs: Path, tmp_path: Path) -> None:
    with (
        Lock(tmp_path / "models" / "retrain.lock"),
        pytest.raises(LockError, match=r"retrain\.lock is held by process"),
    ):
        retrain(options(inputs, tmp_path))
    assert not (tmp_path / "features").exists()


def test_a_rollback_without_an_earlier_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--rollback", "--models", str(tmp_path)])
    assert exit.value.code == 1
    assert "error: " in (captured := capsys.readouterr().err) and "to go back to" in captured


def test_held_out_features_that_do_not_serve(inputs: Path, tmp_path: Path) -> None:
    asked, versions = options(inputs, tmp_path), ModelVersions(tmp_path / "models")
    store = counted(synthetic_store(tmp_path / "store", [4]))
    _check_comparison(store, store, asked, versions)
    with pytest.raises(FeatureStoreError, match="with the same backbone"):
        _check_comparison(FeatureStore.open(str(inputs / "held_out")), store, asked, versions)
    empty = synthetic_store(tmp_path / "empty", [0])
    with pytest.raises(FeatureStoreError, match=r"holds 0 rows, .* its extraction has not ended"):
        _check_comparison(empty, store, asked, versions)
    growing = counted(synthetic_store(tmp_path / "growing", [4]))
    shutil.copy(growing.parts()[0], tmp_path / "growing" / "part-99999.parquet")
    with pytest.raises(FeatureStoreError, match=r"holds 8 rows, and its manifest counts 4"):
        _check_comparison(growing, store, asked, versions)
    fewer = counted(synthetic_store(tmp_path / "fewer", [4]))
    layers = dict(list(fewer.manifest.layers.items())[:1])
    fewer.write_manifest(dataclasses.replace(fewer.manifest, layers=layers))
    with pytest.raises(FeatureStoreError, match="has no features for"):
        _check_comparison(FeatureStore.open(fewer.root), store, asked, versions)
    wrong = dataclasses.replace(asked, gate=GateConfig(layer="layer9"))
    with pytest.raises(LayerError, match=r"gate\.layer is 'layer9'; allowed: all, shallow"):
        _check_comparison(store, store, wrong, versions)


def test_a_current_version_of_another_backbone_is_told_before_the_training(
    inputs: Path, tmp_path: Path
) -> None:
    versions = ModelVersions(tmp_path / "models")
    name = versions.add(tiny_model(tmp_path / "frozen"))
    versions.promote(name, instead_of=None, why={})
    store = counted(synthetic_store(tmp_path / "store", [4]))
    with pytest.raises(ModelFolderError, match=f"the current version, {name}, is of a backbone"):
        _check_comparison(store, store, options(inputs, tmp_path), versions)


def test_a_run_is_named_by_what_decides_its_model(inputs: Path, tmp_path: Path) -> None:
    versions, store = ModelVersions(tmp_path / "models"), synthetic_store(tmp_path / "a", [4, 4])
    asked = options(inputs, tmp_path)
    run = _claim_run(asked, store, versions)
    assert run.name.startswith("2-shards-")
    same = dataclasses.replace(asked, gate=GateConfig(margin=0.3), keep=5)
    assert _claim_run(same, store, versions) == run
    more = synthetic_store(tmp_path / "b", [4, 5])
    wider = dataclasses.replace(asked, workers=2, max_workers=4, max_failures=9)
    assert _claim_run(wider, store, versions) == run  # the result is the same
    longer = dataclasses.replace(asked, training=TrainingConfig(steps=7, warmup_steps=1))
    others = [_claim_run(asked, more, versions), _claim_run(longer, store, versions)]
    assert len({run, *others}) == 3


def test_a_warm_start_stays_with_the_version_that_it_began_from(
    inputs: Path, tmp_path: Path
) -> None:
    versions, store = ModelVersions(tmp_path / "models"), synthetic_store(tmp_path / "a", [4])
    model = tiny_model(tmp_path / "frozen")
    first = versions.add(model)
    versions.promote(first, instead_of=None, why={})
    asked = options(inputs, tmp_path, warm_start=True)
    run = _claim_run(asked, store, versions)
    with torch.no_grad():
        model.translator.prefix_tokens += 1
    versions.promote(versions.add(model), instead_of=first, why={})
    assert _claim_run(asked, store, versions) == run
    training = _train_options(asked, run, versions)
    assert training.start_from == str(versions.folder(first))
    cold = dataclasses.replace(asked, warm_start=False)
    assert _train_options(cold, _claim_run(cold, store, versions), versions).start_from == ""


def test_too_few_versions_to_go_back(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep is 1; allowed: at least 2"):
        options(inputs, tmp_path, keep=1)
    with pytest.raises(ConfigError, match="workers is 0"):
        options(inputs, tmp_path, workers=0)
    with pytest.raises(ConfigError, match="models is gs://bucket; allowed: a folder"):
        options(inputs, tmp_path, models="gs://bucket")


def test_the_oldest_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for number in range(4):
        write_json(tmp_path / f"run{number}" / "inputs.json", {})
        os.utime(tmp_path / f"run{number}", (number, number))
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "notes").mkdir()
    _prune_runs(tmp_path, 2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".DS_Store", "notes", "run2", "run3"]


def test_any_source_can_be_retrained_on(inputs: Path, tmp_path: Path) -> None:
    source = SourceConfig(format="table", images="photos", rows_per_shard=7)
    assert _extract_options(options(inputs, tmp_path, source=source)).source == source
