"""Real components made tiny: language models, backbone weights, shards, a store, a whole model.

Everything is seeded, small enough to build in well under a second, and written as the real things
are: transformers' folder format, safetensors, tars as img2dataset writes them.
"""

import functools
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import timm
import torch
import transformers
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from devil import (
    BackboneConfig,
    DeViL,
    ExtractionConfig,
    LanguageModel,
    LanguageModelConfig,
    Translator,
    TranslatorConfig,
    load_backbone,
    load_language_model,
)
from devil.data.source import open_source
from devil.extraction import Extractor
from devil.features import FeatureStore
from devil.manifest import Manifest
from devil.model import SlotStatistics

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
KINDS = ("circle", "square", "line")
PLACES = ("left", "right", "top", "bottom")
CAPTIONS = tuple(
    f"a {colour} {kind} on the {place} side"
    for colour in COLOURS
    for kind in KINDS
    for place in PLACES
)
CONTEXT = 64
"""Longest sequence of every tiny language model."""
END_OF_TEXT, START, END, PAD = "<|endoftext|>", "<s>", "</s>", "<pad>"
SPECIAL: Mapping[str, dict[str, str]] = {
    "opt": {"bos_token": END, "eos_token": END, "pad_token": PAD},
    "opt-projected": {"bos_token": END, "eos_token": END, "pad_token": PAD},
    "gpt2": {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT},
    "llama": {"bos_token": START, "eos_token": END, "unk_token": "<unk>"},
    "qwen2": {"eos_token": END_OF_TEXT, "pad_token": PAD},
    "qwen3": {"eos_token": END_OF_TEXT, "pad_token": PAD},
}
FAMILIES = tuple(SPECIAL)
SIDE = 64
"""Side of pictures, and of the backbones' input."""
WIDTH = 24
"""Width of the embeddings of every tiny language model."""

SMALL = TranslatorConfig(width=16, depth=2, heads=2, feedforward=32, prefix_length=3)


@functools.cache
def tiny_tokenizer(family: str = "gpt2") -> transformers.PreTrainedTokenizerFast:
    """A tokenizer trained on `CAPTIONS`: byte-level BPE, or for Llama BPE over "▁" words."""
    special = SPECIAL[family]
    tokens = sorted(set(special.values()))
    if family == "llama":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = [*map(chr, range(ord("a"), ord("z") + 1)), "▁"]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _language_model_config(family: str, tokenizer: transformers.PreTrainedTokenizerFast) -> Any:
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,
    }
    if family.startswith("opt"):
        wide = family == "opt-projected"
        return transformers.OPTConfig(
            **common,
            hidden_size=32 if wide else WIDTH,
            word_embed_proj_dim=WIDTH,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            init_std=0.3,
            dropout=0.1,
            pad_token_id=1,
        )
    if family == "gpt2":
        return transformers.GPT2Config(
            **common, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=CONTEXT
        )
    kinds = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    return kinds[family](
        **common,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=CONTEXT,
    )


def tiny_language_model(
    folder: Path, family: str = "gpt2", *, ending: float = 3.0, seed: int = 0
) -> str:
    """Write a language model with random weights; returns its folder.

    Args:
        folder: where it goes.
        family: one of `FAMILIES`; `opt-projected` has embeddings narrower than its hidden width.
        ending: factor on the end token's row of the head: with 3, a fair part of greedy captions
            end, at different lengths; with 0, hardly any.
        seed: of the weights.
    """
    tokenizer = tiny_tokenizer(family)
    config = _language_model_config(family, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= ending
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load_tiny_language_model(
    folder: Path, family: str = "gpt2", *, dtype: torch.dtype = torch.float32, **options: Any
) -> LanguageModel:
    """Write a language model and load it as users do."""
    return load_language_model(tiny_language_model(folder, family, **options), dtype=dtype)


def tiny_backbone_weights(
    folder: Path, name: str = "test_resnet", *, seed: int = 0
) -> BackboneConfig:
    """Write weights of a small timm model (`test_resnet`, `test_vit`); returns how to load them."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = {"img_size": SIDE} if name == "test_vit" else {}
        model = timm.create_model(name, pretrained=False, **size)
    path = folder / f"{name}.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    layers = ("blocks.1", "blocks.5") if name == "test_vit" else ("layer2", "layer3", "layer4")
    return BackboneConfig(name=f"timm:{name}", weights=str(path), layers=layers, image_size=SIDE)


def tiny_model(
    folder: Path,
    *,
    family: str = "gpt2",
    backbone: str = "test_resnet",
    class_tokens: bool = False,
    translator: TranslatorConfig = SMALL,
    text: str = "verbatim",
    untrained: bool = False,
    seed: int = 0,
) -> DeViL:
    """A whole model with random weights; its frozen models' files lie in `folder`.

    With `untrained`, its backbone says so itself (weights `random`), and has other ones.
    """
    config = tiny_backbone_weights(folder / "backbone", backbone, seed=seed)
    if untrained:
        config = replace(config, weights="random", seed=seed + 1)
    vision = load_backbone(config)
    name = tiny_language_model(folder / "language_model", family, seed=seed)
    lm = load_language_model(LanguageModelConfig(name=name, text=text))  # type: ignore[arg-type]
    widths = {layer: shape.channels for layer, shape in vision.shapes.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = Translator(
            replace(translator, class_tokens=class_tokens), widths, lm.embedding_width
        )
        channels = [widths[slot.removesuffix(".class")] for slot in parts.slots]
        statistics = {
            slot: SlotStatistics(torch.randn(c) / 4, torch.rand(c) + 0.5)
            for slot, c in zip(parts.slots, channels, strict=True)
        }
        parts.standardise_by(statistics)
    return DeViL(
        translator=parts,
        language_model=lm,
        backbone_config=config,
        backbone_digest=vision.digest(),
        shapes=vision.shapes,
        statistics=statistics,
        backbone=vision,
        summary={"steps": 0},
        name="tiny",
    ).eval()


CLIP_CONFIG: Mapping[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
"""An image-text model of open_clip, with its own tokenizer."""


def tiny_image_text_model(folder: Path, *, seed: int = 0) -> str:
    """Write an image-text model with random weights in open_clip's hub format."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**CLIP_CONFIG)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    return str(folder)


def picture(caption: str, side: int = SIDE, seed: int = 0) -> Image.Image:
    """A picture of what a caption out of `CAPTIONS` says, over seeded grain."""
    _, colour, kind, _, _, place, _ = caption.split()
    grain = np.random.default_rng(seed).integers(90, 160, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(grain)
    half, third = side // 2, side // 3
    x = {"left": third // 2, "right": side - third // 2}.get(place, half)
    y = {"top": third // 2, "bottom": side - third // 2}.get(place, half)
    box = (x - third // 2, y - third // 2, x + third // 2, y + third // 2)
    draw = ImageDraw.Draw(image)
    shape = {"circle": draw.ellipse, "square": draw.rectangle, "line": draw.line}[kind]
    shape(box, fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """The bytes of a picture's file."""
    stream = io.BytesIO()
    image.save(stream, kind, quality=90)
    return stream.getvalue()


def overwrite(path: Path) -> None:
    """Put zeros in place of a file's content, which whatever maps it then sees."""
    path.write_bytes(bytes(path.stat().st_size))


def text_bomb() -> bytes:
    """A PNG with a compressed text of two megabytes, which Pillow refuses with a `ValueError`."""
    info = PngInfo()
    info.add_text("comment", "a" * 2**21, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> str:
    """Write a tar of (name, content) in that order; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)


def sample_members(key: str, captions: Sequence[str], image: bytes) -> list[tuple[str, bytes]]:
    """The members of one sample as img2dataset writes them."""
    record = {"key": key, "caption": captions[0], "captions": list(captions)}
    return [
        (f"{key}.jpg", image),
        (f"{key}.txt", captions[0].encode()),
        (f"{key}.json", json.dumps(record).encode()),
    ]


def tiny_shards(
    folder: Path, *, shards: int = 2, rows: int = 8, captions: int = 2, seed: int = 0
) -> list[str]:
    """Write webdataset tars with their `_stats.json`; returns their paths."""
    rng = np.random.default_rng(seed)
    paths = []
    for shard in range(shards):
        members: list[tuple[str, bytes]] = []
        for row in range(rows):
            key = f"{shard:05d}{row:04d}"
            texts = [CAPTIONS[rng.integers(len(CAPTIONS))]]
            texts += [f"{texts[0]} again {i}" for i in range(1, captions)]
            image = encoded(picture(texts[0], seed=shard * rows + row))
            members += sample_members(key, texts, image)
        paths.append(write_tar(folder / f"{shard:05d}.tar", members))
        statistics = json.dumps({"count": rows, "successes": rows, "failed_to_download": 0})
        (folder / f"{shard:05d}_stats.json").write_text(statistics)
    return paths


def tiny_store(
    folder: Path,
    *,
    shards: int = 2,
    rows: int = 8,
    captions: int = 2,
    backbone: str = "test_resnet",
    extraction: ExtractionConfig | None = None,
    untrained: bool = False,
) -> FeatureStore:
    """Shards, a backbone, and the store that extraction makes of them (`folder/store`).

    With `untrained`, its backbone says so itself, as in `tiny_model`.
    """
    config = tiny_backbone_weights(folder / "backbone", backbone)
    config = replace(config, weights="random", seed=1) if untrained else config
    vision = load_backbone(config)
    manifest = Manifest.of(vision, config, extraction or ExtractionConfig(draws=3, batch_size=8))
    store = FeatureStore.create(str(folder / "store"), manifest)
    tiny_shards(folder / "shards", shards=shards, rows=rows, captions=captions)
    source = open_source(str(folder / "shards"))
    extractor = Extractor(vision, source, store, threads=1)
    for shard in source.shards():
        extractor(shard)
    return store
