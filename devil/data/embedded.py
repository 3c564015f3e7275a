"""Trains the two frozen models of the embedded default on drawn scenes: a backbone and an LM.

The backbone is a timm model under its own name, trained to say what is in a picture and, by a
throw-away linear head on the maps of its last stages, what is at each location; its weights are a
state dict that the ordinary timm loader reads. The language model is a small Llama with
a byte-level BPE tokenizer, trained on caption text alone, in a folder that transformers reads.

Neither sees a caption together with a picture: joining the two is the translator's work.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from devil.data.scenes import SIZES, TEXTURES, Scene, SceneConfig
from devil.errors import DataError

log = logging.getLogger(__name__)

BACKBONE = "test_resnet"
"""Name of the timm model that is trained."""

LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""Layers of the backbone; their maps of a 160 px image are 40, 20, 10 and 5 locations wide."""

_SUPERVISED = {"layer3": 1.0, "layer4": 0.5}
"""Layers whose locations are told what they show, with the weight of that loss."""

_IMPORTANCE = {"kind": 2.0, "colour": 1.0, "texture": 0.5, "size": 0.25, "background": 0.25}
_MOST_OBJECTS = 4
_CONTEXT = 128
_HINT_TOKENS = 10
_WITHOUT_HINT = 0.25
_CAPTIONS_PER_STEP = 3


# Backbone


@dataclass(frozen=True)
class Labels:
    """What the backbone tells apart: one group of words per attribute of an object."""

    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = tuple(SIZES)
    backgrounds: tuple[str, ...] = SceneConfig.backgrounds

    @classmethod
    def of(cls, config: SceneConfig | None = None) -> "Labels":
        """Labels of the scenes that `config` allows."""
        config = config or SceneConfig()
        return cls(kinds=config.kinds, colours=config.colours, backgrounds=config.backgrounds)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the backbone's logits: "red circle", ..., then "red", ..."""
        pairs = tuple(f"{colour} {kind}" for kind in self.kinds for colour in self.colours)
        return (*pairs, *self.kinds, *self.colours, *self.textures, *self.backgrounds)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Attributes of an object that are told at each of its locations."""
        return self.kinds, self.colours, self.textures, self.sizes


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


@dataclass(frozen=True)
class _Views:
    """Scenes as the backbone sees them."""

    images: Tensor
    """uint8 (scene, 3, height, width) after resizing and cropping, before normalisation."""
    shares: Tensor
    """float16 (scene, object, row, column): share of a `layer3` location that an object fills."""
    attributes: Tensor
    """int64 (scene, object, group): index of the object's word in each group, -1 for none."""
    backgrounds: Tensor
    """int64 (scene): index of the background."""

    def __getitem__(self, index: slice | Tensor) -> "_Views":
        return _Views(
            self.images[index], self.shares[index], self.attributes[index], self.backgrounds[index]
        )

    def __len__(self) -> int:
        return len(self.images)


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
    with _one_thread():
        views = _view_scenes(scenes, model, labels)
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
    log.info("backbone: %s", report)
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


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations wait longer for a second thread on a busy machine than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _output_sizes(labels: Labels) -> list[int]:
    """Outputs per location: attributes, the background, whether there is an object."""
    return [*(len(group) for group in labels.groups), len(labels.backgrounds), 1]


def _view_scenes(scenes: Iterable[Scene], model: nn.Module, labels: Labels) -> _Views:
    """Passes pictures and masks through the model's evaluation transform."""
    data = resolve_model_data_config(model)
    plain = {**data, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform: Any = create_transform(**plain, is_training=False)
    to_owners: Any = create_transform(
        **{**plain, "interpolation": "nearest", "mean": (0.0,), "std": (1.0,)}, is_training=False
    )
    locations = data["input_size"][1] // _reduction(model, "layer3")
    images, shares, attributes, backgrounds = [], [], [], []
    for scene in scenes:
        images.append((transform(scene.image) * 255).round().to(torch.uint8))
        owners = np.zeros((scene.image.height, scene.image.width), dtype=np.uint8)
        for number, item in enumerate(scene.objects, start=1):
            owners[item.mask] = number
        seen = (to_owners(Image.fromarray(owners))[0] * 255).round()
        owned = torch.stack([seen == number for number in range(1, _MOST_OBJECTS + 1)])
        shares.append(F.adaptive_avg_pool2d(owned.float(), locations).half())
        attributes.append(_attributes(scene, labels))
        backgrounds.append(_index(scene.background, labels.backgrounds))
    if not images:
        raise DataError("there are no scenes to train on; pass at least one")
    return _Views(
        torch.stack(images), torch.stack(shares), torch.stack(attributes), torch.tensor(backgrounds)
    )


def _reduction(model: Any, layer: str) -> int:
    return next(info["reduction"] for info in model.feature_info if info["module"] == layer)


def _attributes(scene: Scene, labels: Labels) -> Tensor:
    found = torch.full((_MOST_OBJECTS, len(labels.groups)), -1)
    for row, item in enumerate(scene.objects):
        words = (item.kind, item.colour, item.texture, item.size)
        for column, (word, group) in enumerate(zip(words, labels.groups, strict=True)):
            found[row, column] = _index(word, group)
    return found


def _index(word: str, group: tuple[str, ...]) -> int:
    if word not in group:
        raise DataError(f"a scene has {word!r}, which no label names; labels are {group}")
    return group.index(word)


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
    views: _Views,
    labels: Labels,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer, schedule = _optimizer([model, heads], learning_rate, steps)
    model.train()
    for step, rows in enumerate(_batches(len(views), batch_size, steps, generator)):
        batch = views[rows]
        images, shares = _augment(normalise(batch.images), batch.shares.float(), generator)
        with _autocast():
            logits = model(images)
            local = heads()
        loss = 20 * F.binary_cross_entropy_with_logits(
            logits.float(), _image_targets(batch, labels)
        )
        for name, output in local.items():
            loss = loss + _SUPERVISED[name] * _location_loss(output, shares, batch, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            log.info("backbone step %d of %d: loss %.3f", step + 1, steps, loss.item())
    model.eval()


def _optimizer(modules: Sequence[nn.Module], learning_rate: float, steps: int):
    """AdamW without decay on norms and biases, one cycle of the learning rate."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.15
    )
    return optimizer, schedule


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields `steps` batches of row numbers, a new order for each pass over the data."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]


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


def _image_targets(views: _Views, labels: Labels) -> Tensor:
    """Multi-hot (scene, label): which of `labels.names` are in the picture."""
    attributes = views.attributes
    targets = torch.zeros(len(attributes), len(labels.names))
    scene, slot = (attributes[..., 0] >= 0).nonzero(as_tuple=True)
    kind, colour, texture, _ = attributes[scene, slot].unbind(1)
    kinds, colours = len(labels.kinds), len(labels.colours)
    first = kinds * colours
    targets[scene, kind * colours + colour] = 1
    targets[scene, first + kind] = 1
    targets[scene, first + kinds + colour] = 1
    targets[scene, first + kinds + colours + texture] = 1
    last = first + kinds + colours + len(labels.textures)
    targets[torch.arange(len(views)), last + views.backgrounds] = 1
    return targets


def _owners(shares: Tensor, locations: int) -> tuple[Tensor, Tensor]:
    """Share and number of the object that fills most of each location: (scene, row, column)."""
    return F.adaptive_avg_pool2d(shares, locations).max(1)


def _location_loss(output: Tensor, shares: Tensor, views: _Views, labels: Labels) -> Tensor:
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
    model: nn.Module, heads: _LocationHeads, normalise, views: _Views, labels: Labels
) -> tuple[dict[str, float], float, float]:
    hits = {name: 0 for name in _SUPERVISED}
    seen = {name: 0 for name in _SUPERVISED}
    right = 0.0
    pairs = len(labels.kinds) * len(labels.colours)
    targets = _image_targets(views, labels)[:, :pairs]
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


# Language model


@dataclass(frozen=True)
class LanguageModelReport:
    """What came of training a language model."""

    folder: Path
    """Folder that `AutoModelForCausalLM` and `AutoTokenizer` read."""
    perplexity: float
    """Per token of single captions (end token included) that were not trained on."""
    samples: tuple[str, ...]
    """Captions sampled from the model at temperature 1."""
    parameters: int
    """Number of weights."""
    seconds: float
    """Wall time."""


def train_language_model(
    captions: Iterable[Sequence[str]],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int = 500,
    batch_size: int = 16,
    learning_rate: float = 4e-3,
    held_out: int = 200,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
) -> LanguageModelReport:
    """Trains a small Llama on caption text and saves it with its tokenizer.

    A training text is a caption, closed by the end token, and most often opened by a hint: some of
    its own words, drawn at random. So the model learns to read what stands before a caption, as a
    prefix will; hints are not scored.

    Args:
        captions: For each scene its captions; the first `held_out` scenes are measured on, never
            trained on.
        folder: Where model and tokenizer are written.
        seed: Of the first weights, the order and the samples.
        steps: Optimiser steps.
        batch_size: Texts per step.
        learning_rate: Peak of the one-cycle schedule.
        held_out: Number of scenes kept for the measurement.
        width: Embedding width.
        depth: Number of blocks.
        heads: Attention heads per block.

    Raises:
        DataError: there are not enough captions.
    """
    started = time.perf_counter()
    groups = [tuple(group) for group in captions]
    if len(groups) <= held_out or not all(groups):
        raise DataError(
            f"training needs more than held_out = {held_out} scenes with a caption each, "
            f"not {len(groups)} scenes"
        )
    tokenizer: Any = _train_tokenizer(caption for group in groups for caption in group)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=_CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    texts = [[tokenizer.encode(caption) for caption in group] for group in groups]
    _fit_language_model(model, tokenizer, texts[held_out:], seed, steps, batch_size, learning_rate)
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = LanguageModelReport(
        folder=folder,
        perplexity=_perplexity(model, tokenizer, [c for group in texts[:held_out] for c in group]),
        samples=_sample(model, tokenizer, seed, count=6),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=time.perf_counter() - started,
    )
    log.info("language model: %s", report)
    return report


def _train_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the captions is one token with its leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _fit_language_model(
    model: Any,
    tokenizer: Any,
    texts: Sequence[Sequence[list[int]]],
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer, schedule = _optimizer([model], learning_rate, steps)
    model.train()
    for step, rows in enumerate(_batches(len(texts), batch_size, steps, generator)):
        hints, captions = [], []
        for text in (texts[row] for row in rows.tolist()):
            order = torch.randperm(len(text), generator=generator).tolist()
            for i in order[:_CAPTIONS_PER_STEP]:
                hints.append(_hint(text[i], generator))
                captions.append([*text[i], tokenizer.eos_token_id])
        loss = _next_token_loss(model, tokenizer, captions, hints=hints)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log.info("language model step %d of %d: loss %.3f", step + 1, steps, loss.item())
    model.eval()


def _hint(caption: Sequence[int], generator: torch.Generator) -> list[int]:
    """As many tokens of a caption, drawn at random, as a prefix has embeddings; sometimes none."""
    if torch.rand((), generator=generator) < _WITHOUT_HINT:
        return []
    drawn = torch.randint(len(caption), (_HINT_TOKENS,), generator=generator)
    return [caption[i] for i in drawn.tolist()]


def _next_token_loss(
    model: Any,
    tokenizer: Any,
    texts: Sequence[list[int]],
    reduction: str = "mean",
    hints: Sequence[list[int]] | None = None,
) -> Tensor:
    """Cross-entropy of texts after the start token and a hint, which is not scored itself."""
    hints = hints or [[] for _ in texts]
    rows, targets = [], []
    for hint, text in zip(hints, texts, strict=True):
        row = torch.tensor([tokenizer.bos_token_id, *hint, *text][:_CONTEXT])
        rows.append(row)
        targets.append(row.clone())
        targets[-1][: 1 + len(hint)] = tokenizer.pad_token_id
    pad = tokenizer.pad_token_id
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    labels = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=pad)
    logits = model(input_ids=tokens[:, :-1]).logits.flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=pad, reduction=reduction)


@torch.no_grad()
def _perplexity(model: Any, tokenizer: Any, captions: Sequence[list[int]]) -> float:
    total = 0.0
    for start in range(0, len(captions), 128):
        texts = [[*text, tokenizer.eos_token_id] for text in captions[start : start + 128]]
        total += _next_token_loss(model, tokenizer, texts, reduction="sum").item()
    return math.exp(total / max(sum(len(text) + 1 for text in captions), 1))


@torch.no_grad()
def _sample(model: Any, tokenizer: Any, seed: int, count: int) -> tuple[str, ...]:
    start = torch.full((count, 1), tokenizer.bos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=40
        )
    return tuple(tokenizer.batch_decode(tokens, skip_special_tokens=True))
