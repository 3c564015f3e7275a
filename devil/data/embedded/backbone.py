"""Trains the backbone of the embedded default: a timm model under its own name.

It learns to say what is in a picture and, by a throw-away linear head on the maps of its last
stages, what is at each location; its weights are a state dict that the ordinary timm loader reads.
"""

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from devil.data.embedded.fitting import batches, make_optimizer, one_thread
from devil.data.embedded.views import Labels, Views, image_targets, view_scenes
from devil.data.scenes import Scene
from devil.errors import DataError

log = logging.getLogger(__name__)

BACKBONE = "test_resnet"
"""Name of the timm model that is trained."""

LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""Layers of the backbone; their maps of a 160 px image are 40, 20, 10 and 5 locations wide."""

_SUPERVISED = {"layer3": 1.0, "layer4": 0.5}
"""Layers whose locations are told what they show, with the weight of that loss."""

_IMPORTANCE = {"kind": 2.0, "colour": 1.0, "texture": 0.5, "size": 0.25, "background": 0.25}


@dataclass(frozen=True)
class BackboneReport:
    """What came of training a backbone; shares are of scenes that it was not trained on."""

    name: str
    """timm name of the model."""
    path: Path
    """Safetensors state dict."""
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    local_accuracy: dict[str, float]
    """Layer to the share of locations on objects where both kind and colour are told."""
    image_accuracy: float
    """Share of pictures whose most probable "colour kind" is in the picture."""
    chance_image_accuracy: float
    """The same for the "colour kind" that is most frequent in those pictures."""
    seconds: float
    """Wall time, including the drawing of scenes that were passed as an iterator."""


def train_backbone(
    scenes: Iterable[Scene],
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int = 1100,
    batch_size: int = 16,
    learning_rate: float = 5e-3,
    held_out: int = 300,
    labels: Labels | None = None,
) -> BackboneReport:
    """Trains timm's `test_resnet` on scenes and saves its state dict.

    The pictures pass through the evaluation transform that timm resolves for the model, so that
    training and use agree. Equal arguments give equal weights on one machine with one number of
    threads; torch's global random state is left as it was.

    Args:
        scenes: Pictures; the first `held_out` are measured on, never trained on.
        path: Safetensors file to write.
        seed: Of the first weights, the order and the augmentation.
        steps: Optimiser steps.
        batch_size: Scenes per step.
        learning_rate: Peak of the one-cycle schedule.
        held_out: Number of scenes kept for the measurement.
        labels: Classes; those of the default `SceneConfig` unless given.

    Raises:
        DataError: there are not enough scenes, or one has a word that no label names.
    """
    started = time.perf_counter()
    labels = labels or Labels.of()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(BACKBONE, num_classes=len(labels.names))
        heads = _LocationHeads(model, labels)
    model = model.to(memory_format=torch.channels_last)
    with one_thread():
        views = view_scenes(scenes, model, labels)
    if len(views) < held_out + batch_size:
        raise DataError(
            f"training needs held_out + batch_size = {held_out + batch_size} scenes or more, "
            f"not {len(views)}; pass more scenes or lower held_out"
        )
    log.info("%d scenes ready after %.1f s", len(views), time.perf_counter() - started)
    normalise = _normaliser(model)
    _fit_backbone(
        model, heads, normalise, views[held_out:], labels, seed, steps, batch_size, learning_rate
    )
    path = Path(path)
    _save_state(model, path)
    local, right, chance = _measure_backbone(model, heads, normalise, views[:held_out], labels)
    report = BackboneReport(
        name=BACKBONE,
        path=path,
        labels=labels.names,
        local_accuracy=local,
        image_accuracy=right,
        chance_image_accuracy=chance,
        seconds=time.perf_counter() - started,
    )
    log.info("backbone: right on %.0f %% of pictures (chance %.0f %%)", 100 * right, 100 * chance)
    return report


class _LocationHeads(nn.Module):
    """Linear heads on the maps of the supervised layers; thrown away after training."""

    def __init__(self, model: Any, labels: Labels) -> None:
        super().__init__()
        widths = {info["module"]: info["num_chs"] for info in model.feature_info}
        outputs = sum(_output_sizes(labels))
        self.heads = nn.ModuleDict({n: nn.Conv2d(widths[n], outputs, 1) for n in _SUPERVISED})
        self._maps: dict[str, Tensor] = {}
        for name in _SUPERVISED:
            model.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._maps[name] = output

        return hook

    def forward(self) -> dict[str, Tensor]:
        """Logits (batch, row, column, outputs) of each layer for the model's last batch."""
        return {
            name: head(self._maps.pop(name)).permute(0, 2, 3, 1).float()
            for name, head in self.heads.items()
        }


def _output_sizes(labels: Labels) -> list[int]:
    """Outputs per location: attributes, the background, whether there is an object."""
    return [*(len(group) for group in labels.groups), len(labels.backgrounds), 1]


def _normaliser(model: nn.Module):
    data = resolve_model_data_config(model)
    mean = torch.tensor(data["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(data["std"]).view(1, 3, 1, 1)

    def normalise(images: Tensor) -> Tensor:
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    return normalise


def _fit_backbone(
    model: nn.Module,
    heads: _LocationHeads,
    normalise,
    views: Views,
    labels: Labels,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer, schedule = make_optimizer([model, heads], learning_rate, steps)
    model.train()
    for step, rows in enumerate(batches(len(views), batch_size, steps, generator)):
        batch = views[rows]
        images, shares = _augment(normalise(batch.images), batch.shares.float(), generator)
        with _autocast():
            logits = model(images)
            local = heads()
        loss = 20 * F.binary_cross_entropy_with_logits(logits.float(), image_targets(batch, labels))
        for name, output in local.items():
            loss = loss + _SUPERVISED[name] * _location_loss(output, shares, batch, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            log.info("backbone step %d of %d: loss %.3f", step + 1, steps, loss.item())
    model.eval()


def _autocast():
    """bfloat16 where the processor computes in it; elsewhere it would be slower than float32."""
    able = torch.cpu.get_capabilities()
    fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast)


def _augment(images: Tensor, shares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrors the batch half the time and changes brightness and tone a little."""
    if torch.rand((), generator=generator) < 0.5:
        images, shares = images.flip(3), shares.flip(3)
    gain = 1 + 0.12 * torch.randn(len(images), 1, 1, 1, generator=generator)
    tone = 0.06 * torch.randn(len(images), 3, 1, 1, generator=generator)
    images = images * gain + tone
    return images.contiguous(memory_format=torch.channels_last), shares


def _owners(shares: Tensor, locations: int) -> tuple[Tensor, Tensor]:
    """Share and number of the object that fills most of each location: (scene, row, column)."""
    return F.adaptive_avg_pool2d(shares, locations).max(1)


def _location_loss(output: Tensor, shares: Tensor, views: Views, labels: Labels) -> Tensor:
    """Which object is here, if any, and what it is like; elsewhere, which background."""
    *attributes, background, presence = output.split(_output_sizes(labels), dim=-1)
    share, owner = _owners(shares, output.shape[1])
    filled = F.adaptive_avg_pool2d(shares.sum(1, keepdim=True), output.shape[1])[:, 0]
    loss = F.binary_cross_entropy_with_logits(presence[..., 0], filled.clamp(0, 1))

    scene, row, column = (share >= 0.25).nonzero(as_tuple=True)
    truth = views.attributes[scene, owner[scene, row, column]]
    weight = share[scene, row, column] / share[scene, row, column].sum().clamp(min=1e-6)
    importances = list(_IMPORTANCE.values())
    for logits, group, importance in zip(attributes, truth.unbind(1), importances, strict=False):
        each = F.cross_entropy(logits[scene, row, column], group, reduction="none")
        loss = loss + importance * (each * weight).sum()

    empty = (filled < 0.05).float()
    truth = views.backgrounds[:, None, None].expand_as(filled)
    each = F.cross_entropy(background.permute(0, 3, 1, 2), truth, reduction="none")
    return loss + importances[-1] * (each * empty).sum() / empty.sum().clamp(min=1)


def _save_state(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, partial, metadata={"format": "pt", "architecture": BACKBONE})
    os.replace(partial, path)


@torch.no_grad()
def _measure_backbone(
    model: nn.Module, heads: _LocationHeads, normalise, views: Views, labels: Labels
) -> tuple[dict[str, float], float, float]:
    hits = {name: 0 for name in _SUPERVISED}
    seen = {name: 0 for name in _SUPERVISED}
    right = 0.0
    pairs = len(labels.kinds) * len(labels.colours)
    targets = image_targets(views, labels)[:, :pairs]
    for start in range(0, len(views), 64):
        batch = views[slice(start, start + 64)]
        best = model(normalise(batch.images))[:, :pairs].argmax(1)
        right += targets[start : start + 64].gather(1, best[:, None]).sum().item()
        for name, output in heads().items():
            share, owner = _owners(batch.shares.float(), output.shape[1])
            scene, row, column = (share >= 0.5).nonzero(as_tuple=True)
            truth = batch.attributes[scene, owner[scene, row, column]]
            parts = output[scene, row, column].split(_output_sizes(labels), dim=1)
            told = [part.argmax(1) == truth[:, index] for index, part in enumerate(parts[:2])]
            hits[name] += int((told[0] & told[1]).sum())
            seen[name] += len(truth)
    local = {name: hits[name] / max(seen[name], 1) for name in _SUPERVISED}
    return local, right / max(len(views), 1), float(targets.mean(0).max())
