"""Training: schedule, groups, resumption bit for bit, and losses that fall as they did before."""

import copy
import functools
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference
import stores
import tiny
import torch

from devil.batches import Batch, TrainingBatches
from devil.config import TrainingConfig
from devil.errors import ConfigError, DevilError, LossError
from devil.language_model import LanguageModel
from devil.training import TENSORS, Trainer, autocast_dtype, build_optimiser, learning_rate
from devil.translator import Translator

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load_tiny_language_model(tmp_path_factory.mktemp("lm"), "opt")


def config(**changes: Any) -> TrainingConfig:
    values = dict(steps=30, batch_size=4, warmup_steps=3, learning_rate=3e-3, validation_rows=4)
    values |= dict(final_learning_rate=1e-4, max_caption_tokens=30, precision="float32")
    return TrainingConfig(**{**values, **changes})


def parts(
    folder: Path, lm: LanguageModel, options: TrainingConfig, **arguments: Any
) -> tuple[Trainer, TrainingBatches]:
    """A trainer and its batches, always from the same start."""
    store = stores.synthetic_store(folder)
    batches = TrainingBatches(store, lm, options)
    torch.manual_seed(0)
    widths = {name: shape.channels for name, shape in store.manifest.layers.items()}
    translator = Translator(tiny.SMALL, widths, lm.embedding_width)
    translator.standardise_by(batches.statistics())
    return Trainer(translator, lm, options, **arguments), batches


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 100), (50, 0), (10, 9), (100, 1)])
def test_schedule(steps: int, warmup: int) -> None:
    options = config(steps=steps, warmup_steps=warmup, learning_rate=1e-3, final_learning_rate=1e-5)
    rates = [learning_rate(step, options) for step in range(steps)]
    expected = dict(steps=steps, warmup=warmup, peak=1e-3, floor=1e-5)
    assert rates == pytest.approx([reference.learning_rate(s, **expected) for s in range(steps)])
    assert max(rates) == pytest.approx(1e-3)
    assert min(rates[warmup:]) >= 1e-5
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_warmup_longer_than_training() -> None:
    rates = [learning_rate(step, config(steps=4, warmup_steps=100)) for step in range(4)]
    assert rates == pytest.approx([3e-3 * s / 4 for s in (1, 2, 3, 4)])


def test_weight_decay_spares_biases_norms_and_learned_tokens() -> None:
    translator = Translator(tiny.SMALL, {"a": 3, "b": 4}, 5)
    optimiser = build_optimiser(translator, config(weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    named = dict(translator.named_parameters())
    assert len(decay) == len(named)
    spared = {name for name, p in named.items() if decay[id(p)] == 0.0}
    assert {decay[id(p)] for p in named.values()} == {0.0, 0.3}
    expected = {n for n in named if n.endswith("bias") or ".norm" in n}
    assert spared == expected | {"slot_embedding", "prefix_tokens"}
    assert {"project.0.weight", "output.weight", "encoder.layers.0.self_attn.in_proj_weight"} <= (
        set(named) - spared
    )


def test_resumed_equals_uninterrupted(lm: LanguageModel, tmp_path: Path) -> None:
    options = config()
    whole, batches = parts(tmp_path / "store", lm, options)
    losses = [whole.train_step(batch) for batch in batches(0, 20)]
    first, batches = parts(tmp_path / "store", lm, options)
    metrics = [first.train_step(batch) for batch in batches(0, 9)]
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved", seconds=1.5)
    second, batches = parts(tmp_path / "store", lm, options)
    with torch.no_grad():  # whatever it started from must not matter
        for parameter in second.translator.parameters():
            parameter.add_(1.0)
    torch.manual_seed(99)
    assert second.load(tmp_path / "saved") == {"step": 9, "seconds": 1.5}
    assert second.step == 9
    metrics += [second.train_step(batch) for batch in batches(second.step, 20)]
    assert metrics == losses
    for name, tensor in whole.translator.state_dict().items():
        assert torch.equal(second.translator.state_dict()[name], tensor), name
    states = [t.optimiser.state_dict()["state"] for t in (whole, second)]
    for index, values in states[0].items():
        for name, value in values.items():
            assert torch.equal(states[1][index][name], value)
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {"state.json", "state.safetensors"}


def test_resumed_equals_uninterrupted_with_the_language_models_dropout(
    lm: LanguageModel, tmp_path: Path
) -> None:
    options = config(lm_dropout=True)
    whole, batches = parts(tmp_path / "store", lm, options)
    torch.manual_seed(1)
    expected = [whole.train_step(batch) for batch in batches(0, 6)]
    first, batches = parts(tmp_path / "store", lm, options)
    found = [first.train_step(batch) for batch in batches(0, 2)]
    first.save(tmp_path)
    second, batches = parts(tmp_path / "store", lm, options)
    second.load(tmp_path)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    found += [second.train_step(batch) for batch in batches(2, 6)]
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)
    # Steps and workers draw for themselves.
    (batch,) = batches(0, 1)
    losses = set()
    for rank, step in ((0, 0), (1, 0), (0, 1)):
        trainer, _ = parts(tmp_path / "store", lm, options, rank=rank)
        trainer.step = step
        losses.add(trainer.train_step(batch._replace(step=step)).loss)
    assert len(losses) == 3


def test_what_was_loaded_does_not_need_its_file(lm: LanguageModel, tmp_path: Path) -> None:
    first, batches = parts(tmp_path / "store", lm, config())
    first.train_step(next(batches(0, 1)))
    first.save(tmp_path)
    second, _ = parts(tmp_path / "store", lm, config())
    second.load(tmp_path)
    tiny.overwrite(tmp_path / TENSORS)
    states = [t.optimiser.state_dict()["state"] for t in (first, second)]
    assert states[0]
    for index, values in states[0].items():
        for name, value in values.items():
            assert torch.equal(states[1][index][name], value)


def test_saved_before_the_first_step(lm: LanguageModel, tmp_path: Path) -> None:
    trainer, batches = parts(tmp_path / "store", lm, config())
    (tmp_path / "saved").mkdir()
    trainer.save(tmp_path / "saved")
    loss = trainer.train_step(next(batches(0, 1))).loss
    again, batches = parts(tmp_path / "store", lm, config())
    again.load(tmp_path / "saved")
    assert again.train_step(next(batches(0, 1))).loss == loss


@pytest.mark.parametrize("lm_dropout", [False, True])
def test_the_language_model_stays_as_it_is(
    lm_dropout: bool, lm: LanguageModel, tmp_path: Path
) -> None:
    digest = lm.digest()
    trainer, batches = parts(tmp_path, lm, config(lm_dropout=lm_dropout))
    before = {k: v.clone() for k, v in trainer.translator.state_dict().items()}
    (batch,) = batches(0, 1)
    first, second = float(trainer.loss(batch).detach()), float(trainer.loss(batch).detach())
    assert (first != second) == lm_dropout
    for batch in batches(0, 3):
        trainer.train_step(batch)
    assert lm.digest() == digest
    assert not any(module.training for module in lm.modules())
    assert all(parameter.grad is None for parameter in lm.parameters())
    after = trainer.translator.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {n for n in before if not n.startswith("feature_")} == moved


def test_step_by_the_equations(lm: LanguageModel, tmp_path: Path) -> None:
    """The first step's loss, gradient norm and clipped AdamW update, from plain autograd."""
    options = config(gradient_clip=0.05, weight_decay=0.1)
    trainer, batches = parts(tmp_path, lm, options)
    plain, _ = parts(tmp_path, lm, options)
    (batch,) = batches(0, 1)
    prefix = plain.translator(batch.features, batch.visible)
    total, count = reference.caption_loss(lm, prefix, batch.captions)
    (total / count).backward()
    metrics = trainer.train_step(batch)
    assert metrics.loss == pytest.approx(float(total.detach()) / count, rel=1e-5)
    parameters = dict(plain.translator.named_parameters())
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters.values()))
    assert norm > 0.05 and metrics.gradient_norm == pytest.approx(norm, rel=1e-4)
    rate = 3e-3 / 3
    assert metrics.learning_rate == pytest.approx(rate)
    for name, parameter in trainer.translator.named_parameters():
        old = parameters[name].detach()
        gradient = parameters[name].grad * 0.05 / norm
        kept = (
            old
            if old.ndim < 2 or "embedding" in name or "tokens" in name
            else old * (1 - rate * 0.1)
        )
        expected = kept - rate * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-6  # elsewhere the sign of rounding decides
        torch.testing.assert_close(parameter[sure], expected[sure], rtol=1e-4, atol=2e-5)


def test_compiled_steps_are_the_same(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the graphs that are compiled run as they are: compiling them takes minutes."""
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    plain, batches = parts(tmp_path, lm, config())
    quick, _ = parts(tmp_path, lm, config(compile=True))
    for batch in batches(0, 3):
        expected, found = plain.train_step(batch), quick.train_step(batch)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    names = {name for name, _ in plain.translator.named_parameters()}
    assert {name for name, _ in quick.translator.named_parameters()} == names
    # Others use the language model meanwhile, as it was.
    assert not any(module._compiled_call_impl for module in lm.modules())


def test_compiling_needs_a_compiler(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler here .*compile=False"):
        parts(tmp_path, lm, config(compile=True))


def test_workers_gradients_sum_to_the_whole(lm: LanguageModel, tmp_path: Path) -> None:
    whole, batches = parts(tmp_path, lm, config())
    (batch,) = batches(0, 1)
    loss = whole.loss(batch)
    loss.backward()
    shares = []
    for rank in range(2):
        worker, _ = parts(tmp_path, lm, config(), world=2)
        mine = TrainingBatches(batches.store, lm, config(), rank=rank, world=2)
        share = worker.loss(next(mine(0, 1)))
        share.backward()
        shares.append((share.detach(), worker.translator))
    assert float(sum(s for s, _ in shares)) == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in whole.translator.named_parameters():
        summed = sum(t.get_parameter(name).grad for _, t in shares)
        torch.testing.assert_close(summed, parameter.grad, rtol=1e-3, atol=1e-6)


def test_loss_falls_when_few_rows_are_learned_by_heart(lm: LanguageModel, tmp_path: Path) -> None:
    options = config(steps=150, learning_rate=5e-3, warmup_steps=10, validation_rows=0)
    trainer, batches = parts(tmp_path, lm, options)
    losses = [trainer.train_step(batch).loss for batch in batches(0, 150)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), (losses[:5], losses[-5:])


def test_loss_that_is_not_finite(lm: LanguageModel, tmp_path: Path) -> None:
    trainer, batches = parts(tmp_path, lm, config())
    (batch,) = batches(0, 1)
    before = trainer.translator.output.weight.clone()
    batch.features["deep"][0, 0] = float("nan")
    batch.visible[:] = True
    with pytest.raises(LossError, match=r"loss at step 0 is nan; lower the learning rate") as info:
        trainer.train_step(batch)
    assert torch.equal(trainer.translator.output.weight, before)
    assert math.isnan(info.value.loss)


def test_gradient_that_is_not_finite(lm: LanguageModel, tmp_path: Path) -> None:
    """As on a worker whose own share of the loss is finite."""
    trainer, batches = parts(tmp_path, lm, config())
    before = trainer.translator.output.weight.clone()
    trainer.translator.prefix_tokens.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(LossError, match=r"loss at step 0 is \d.* its gradient's norm (nan|inf);"):
        trainer.train_step(next(batches(0, 1)))
    assert torch.equal(trainer.translator.output.weight, before) and trainer.step == 0


def test_validation_loss(lm: LanguageModel, tmp_path: Path) -> None:
    trainer, batches = parts(tmp_path, lm, config())
    rows = batches.held_out()
    rows.references[1] = ["a red circle " * 20, "short"]  # as training, it leaves such out
    rows.references[2] = [" "]
    loss = trainer.validation_loss(rows, batch_size=3)
    total, count = torch.tensor(0.0), 0
    for index in (0, 3):
        prefix = trainer.translator({s: v[index : index + 1] for s, v in rows.features.items()})
        ids = lm.caption_ids(rows.references[index][0])
        part, labels = reference.caption_loss(lm, prefix, [ids])
        total, count = total + part.detach(), count + labels
    assert loss == pytest.approx(float(total) / count, rel=1e-5)


def test_validation_loss_after_an_evaluation(lm: LanguageModel, tmp_path: Path) -> None:
    """As before it to the last bit: where training was interrupted changes no choice of weights."""
    trainer, batches = parts(tmp_path, lm, config())
    rows = batches.held_out()
    for batch in batches(0, 30):
        trainer.train_step(batch)
        evaluated = Trainer(copy.deepcopy(trainer.translator).eval(), lm, trainer.config)
        assert trainer.validation_loss(rows) == evaluated.validation_loss(rows)


def test_captions_longer_than_the_context(lm: LanguageModel, tmp_path: Path) -> None:
    longest = tiny.CONTEXT - tiny.SMALL.prefix_length - 1
    trainer, batches = parts(tmp_path, lm, config(max_caption_tokens=longest))
    (batch,) = batches(0, 1)
    full = batch._replace(captions=[[5] * longest] * 4)
    assert isinstance(full, Batch) and math.isfinite(trainer.train_step(full).loss)
    with pytest.raises(ConfigError, match=rf"context of {tiny.CONTEXT} .*at most {longest}\."):
        parts(tmp_path, lm, config(max_caption_tokens=longest + 1))


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bfloat16", cpu) is torch.bfloat16
    for able in ({"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        expected = torch.bfloat16 if any(able.values()) else None
        assert autocast_dtype("auto", cpu) is expected
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert autocast_dtype("auto", gpu) is autocast_dtype("bfloat16", gpu) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert autocast_dtype("auto", gpu) is None
    with pytest.raises(DevilError, match="which this GPU lacks; use 'float32'"):
        autocast_dtype("bfloat16", gpu)


def test_bfloat16_learns_the_same(lm: LanguageModel, tmp_path: Path) -> None:
    curves = []
    for precision in ("float32", "bfloat16"):
        trainer, batches = parts(tmp_path, lm, config(precision=precision))
        curves.append([trainer.train_step(batch).loss for batch in batches(0, 10)])
        assert trainer.translator.output.weight.dtype == torch.float32
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


def test_golden_loss_curve(tmp_path: Path) -> None:
    """Numbers of an earlier version; `golden/make_loss_curve.py` makes them again."""
    spec = importlib.util.spec_from_file_location("golden_curve", GOLDEN / "make_loss_curve.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected = json.loads(script.CURVE.read_text())
    assert len(expected) == 40 and expected[-1] < expected[0]
    assert script.loss_curve(tmp_path) == pytest.approx(expected, rel=1e-4)
