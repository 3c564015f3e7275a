"""Training the translator on stored features: one step, the schedule, validation, and its state.

Nothing here knows of a cluster: `pipelines/train.py` hands in the wrapped translator and the
worker's share of each batch.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from devil.batches import Batch
from devil.config import TrainingConfig
from devil.cost import training_flops
from devil.errors import CaptionError, ConfigError, DevilError, LossError
from devil.frozen import compiled, with_matrices_in
from devil.held_out import HeldOut
from devil.language_model import LanguageModel, short_sequence_attention
from devil.loss import caption_loss
from devil.translator import Translator

STATE, TENSORS = "state.json", "state.safetensors"


class StepMetrics(NamedTuple):
    """What a step measured on this worker."""

    step: int
    loss: float
    """Share of this worker in the mean loss of the whole batch; workers' shares sum to it."""
    gradient_norm: float
    learning_rate: float
    captions: int
    flops: int
    """Operations that this worker's share needed, forward and backward."""


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up to the peak, then linear decay towards 0 at the end, not below the floor."""
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    left = (config.steps - step) / max(1, config.steps - warmup)
    return max(config.final_learning_rate, config.learning_rate * left)


def build_optimiser(translator: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases, norms, and the learned tokens."""
    decayed, spared = [], []
    for name, parameter in translator.named_parameters():
        learned_token = name.endswith(("slot_embedding", "prefix_tokens"))
        (spared if parameter.ndim < 2 or learned_token else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast: bfloat16 where the processor has it, or as asked; None is float32.

    Raises:
        DevilError: bfloat16 was asked for on a GPU that lacks it.
    """
    if precision == "float32":
        return None
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported()
        if precision == "bfloat16" and not has:
            raise DevilError("precision is 'bfloat16', which this GPU lacks; use 'float32'.")
    else:
        capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        has = bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
    return torch.bfloat16 if has or precision == "bfloat16" else None


def check_context(
    language_model: LanguageModel, prefix_length: int, config: TrainingConfig
) -> None:
    """Refuse captions so long that they do not fit behind a prefix.

    Raises:
        ConfigError: prefix and longest caption together exceed the LM's context.
    """
    room = language_model.context - prefix_length - 1
    if config.max_caption_tokens > room:
        raise ConfigError(
            f"max_caption_tokens is {config.max_caption_tokens}; with a prefix of "
            f"{prefix_length} the language model's context of "
            f"{language_model.context} tokens allows at most {room}."
        )


def _check_compiler(device: torch.device) -> None:
    names = [os.environ.get("CXX") or "g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, names)):
        raise ConfigError(
            f"compile is on, but there is no C++ compiler here ({' or '.join(names)}); install "
            "one, or train with compile=False."
        )


class Trainer:
    """The translator, its optimiser, and the frozen language model that gives the loss."""

    def __init__(
        self,
        translator: Translator,
        language_model: LanguageModel,
        config: TrainingConfig,
        *,
        wrapped: Callable[..., Tensor] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Take the parts, on their device.

        Args:
            translator: trained in place.
            language_model: frozen.
            config: the optimisation.
            wrapped: the translator inside a data-parallel wrapper, which averages gradients.
            rank, world: which worker this is of those behind the wrapper.

        Raises:
            ConfigError: prefix and longest caption together exceed the LM's context; or what is to
                be compiled for this processor lacks a C++ compiler.
        """
        check_context(language_model, translator.config.prefix_length, config)
        # Nothing in it draws by its mode, but its kernels follow it: one mode from first to last,
        # so that a validation finds the same after a restart, to the last bit.
        self.translator, self.lm, self.config = translator.eval(), language_model, config
        self.forward = wrapped or translator
        self.rank, self.world = rank, world
        self.optimiser = build_optimiser(translator, config)
        self.device = translator.prefix_tokens.device
        self.dtype = autocast_dtype(config.precision, self.device)
        # Autocast keeps its casts of trained weights for a step, and makes those of frozen ones
        # at each use.
        self._frozen = with_matrices_in(language_model, self.dtype or torch.float32)
        if config.compile:
            _check_compiler(self.device)
            self._frozen = compiled(self._frozen)
            self.forward = torch.compile(self.forward, dynamic=True)
        self.step = 0

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def loss(self, batch: Batch) -> Tensor:
        """This worker's share of the global batch's mean loss."""
        features = {s: v.to(self.device, non_blocking=True) for s, v in batch.features.items()}
        with self._autocast(), short_sequence_attention(self.device):
            # Which slots are visible stays on the CPU, where the translator plans by it.
            prefix = self.forward(features, batch.visible)
            with self._frozen.with_dropout(self.config.lm_dropout):
                loss = caption_loss(self._frozen, prefix, batch.captions)
        return loss.total / batch.global_tokens

    @contextlib.contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """Draw the language model's dropout by (seed, step, worker): nothing else draws here.

        So a run that goes on from a checkpoint draws what an uninterrupted one would have drawn.
        """
        if not self.config.lm_dropout:
            yield
            return
        rng = np.random.default_rng([self.config.seed, 3, self.step, self.rank])
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**62)))
            yield

    def train_step(self, batch: Batch) -> StepMetrics:
        """One optimiser step.

        Raises:
            LossError: the loss or its gradient is not finite; the weights stay as they were. The
                workers' gradients are one, so that all of them raise.
        """
        assert batch.step == self.step, (batch.step, self.step)
        rate = learning_rate(self.step, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with short_sequence_attention(self.device), self._own_dropout():
            loss = self.loss(batch)
            # A data-parallel wrapper averages over workers; the loss is a sum over them.
            (loss * self.world).backward()
        norm = nn.utils.clip_grad_norm_(
            self.translator.parameters(), self.config.gradient_clip or math.inf
        )
        self._check_finite(float(loss.detach()), float(norm), rate)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        flops = training_flops(self.translator, self.lm, batch.visible, batch.captions)
        value = float(loss.detach())
        return StepMetrics(batch.step, value, float(norm), rate, len(batch.captions), flops)

    def _check_finite(self, loss: float, norm: float, rate: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.optimiser.zero_grad(set_to_none=True)
        gradient = f" and its gradient's norm {norm}" if math.isfinite(loss) else ""
        raise LossError(
            f"the loss at step {self.step} is {loss}{gradient}; lower the learning rate "
            f"({rate:g} now), or look for broken features.",
            loss,
        )

    @torch.inference_mode()
    def validation_loss(self, rows: HeldOut, *, batch_size: int = 64) -> float:
        """Mean cross-entropy of each row's first caption, all layers shown, in nats per token.

        NaN if every first caption is empty or too long.
        """
        total, tokens = 0.0, 0
        slots = self.translator.slots
        for start in range(0, len(rows.keys), batch_size):
            span = slice(start, start + batch_size)
            features = {slot: rows.features[slot][span].to(self.device) for slot in slots}
            captions = [self._first_caption(texts) for texts in rows.references[span]]
            with self._autocast(), short_sequence_attention(self.device):
                loss = caption_loss(self._frozen, self.translator(features), captions)
            total += float(loss.total)
            tokens += loss.tokens
        return total / tokens if tokens else math.nan

    def _first_caption(self, texts: Sequence[str]) -> list[int]:
        """Token ids; none, if training would leave the caption out, too."""
        try:
            return self.lm.caption_ids(texts[0], limit=self.config.max_caption_tokens)
        except CaptionError:
            return []

    def save(self, folder: Path, **extra: Any) -> None:
        """Write weights, optimiser and step; tensors as safetensors, the rest as JSON."""
        tensors = {f"translator.{k}": v for k, v in self.translator.state_dict().items()}
        state = self.optimiser.state_dict()["state"]
        for index, values in state.items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
        safetensors.torch.save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / TENSORS
        )
        (folder / STATE).write_text(json.dumps({"step": self.step, **extra}))

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on from `save`'s files; returns what else was written with them."""
        tensors = safetensors.torch.load_file(folder / TENSORS)
        self.translator.load_state_dict(
            {
                k.removeprefix("translator."): v
                for k, v in tensors.items()
                if k.startswith("translator.")
            }
        )
        # Copies, for the optimiser keeps them; the file is mapped, and its folder does not stay.
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value.clone()
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        values = json.loads((folder / STATE).read_text())
        self.step = values["step"]
        return values
