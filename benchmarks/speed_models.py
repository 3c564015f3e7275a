"""Models whose speed is measured: true sizes with random weights, and small real ones.

Nothing is fetched: shapes come from the libraries' own configurations, tokens are numbered words.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from devil.backbones import Backbone, load_backbone
from devil.config import BackboneConfig, LanguageModelConfig, TranslatorConfig
from devil.errors import ConfigError
from devil.language_model import LanguageModel, load_language_model
from devil.model import DeViL, SlotStatistics
from devil.translator import Translator

END = 2
"""Id of BOS and EOS, as OPT has it."""

LANGUAGE_MODELS: dict[str, Any] = {
    "opt-125m": transformers.OPTConfig,
    "gpt2": transformers.GPT2Config,
}
"""Name → configuration whose defaults are that model's."""

REAL = ("caption-gpt2", "stories260k")
"""Small trained language models in `models/` of `DEVIL_REAL_DATA`."""

BACKBONES = {
    "resnet50": BackboneConfig(
        name="timm:resnet50", weights="random", layers=("layer2", "layer3", "layer4")
    ),
    "vit-b-32": BackboneConfig(
        name="timm:vit_base_patch32_224",
        weights="random",
        layers=tuple(f"blocks.{i}" for i in range(12)),
    ),
}

TRANSLATORS = {"gpt2": TranslatorConfig(depth=8, heads=8, feedforward=1532)}
"""Sizes that the paper uses with a language model; the default is that for OPT-125M."""


class Explained(NamedTuple):
    """A model, and the layers at which it is measured, by their number of locations."""

    name: str
    model: DeViL
    images: Tensor
    """(1, 3, height, width)."""
    layers: dict[int, str]


def numbered_words(size: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of `size` words `w0`, `w1`, ..., of which one ends texts."""
    words = {f"w{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=f"w{END}"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=f"w{END}", eos_token=f"w{END}"
    )


def random_language_model(name: str, *, seed: int = 0) -> LanguageModel:
    """A language model of a known shape with random weights."""
    config = LANGUAGE_MODELS[name](bos_token_id=END, eos_token_id=END)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return LanguageModel(model, numbered_words(config.vocab_size), LanguageModelConfig(name=name))


def language_model(name: str, data: Path | None) -> LanguageModel:
    """A language model by name, on the CPU.

    Raises:
        ConfigError: the name is unknown, or a real model without `DEVIL_REAL_DATA`.
    """
    if name in LANGUAGE_MODELS:
        return random_language_model(name)
    if name not in REAL or data is None:
        raise ConfigError(
            f"language model {name!r}: known are {', '.join(LANGUAGE_MODELS)}, and with "
            f"DEVIL_REAL_DATA set {', '.join(REAL)}."
        )
    return load_language_model(str(data / "models" / name))


def explained(backbone: str, lm_name: str, lm: LanguageModel, device: torch.device) -> Explained:
    """A whole model of random weights, and an image of seeded grain for it."""
    vision = load_backbone(BACKBONES[backbone])
    config = TRANSLATORS.get(lm_name, TranslatorConfig())
    widths = {layer: shape.channels for layer, shape in vision.shapes.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        translator = Translator(config, widths, lm.embedding_width)
    images = torch.randn(1, 3, *vision.transform.crop, generator=torch.Generator().manual_seed(1))
    model = assembled(
        vision, translator, lm, BACKBONES[backbone], location_statistics(vision, images)
    )
    layers = {shape.locations: layer for layer, shape in vision.shapes.items()}
    return Explained(f"{backbone} + {lm_name}", model.to(device), images.to(device), layers)


def assembled(
    vision: Backbone,
    translator: Translator,
    lm: LanguageModel,
    config: BackboneConfig,
    statistics: dict[str, SlotStatistics],
) -> DeViL:
    """The parts together, with features standardised."""
    translator.standardise_by(statistics)
    return DeViL(
        translator=translator,
        language_model=lm,
        backbone_config=config,
        backbone_digest="",
        shapes=vision.shapes,
        statistics=statistics,
        backbone=vision,
    ).eval()


@torch.inference_mode()
def location_statistics(vision: Backbone, images: Tensor) -> dict[str, SlotStatistics]:
    """Statistics over an image's locations.

    Random weights say nearly the same everywhere; scaled by these, each location differs.
    """
    result = {}
    for layer, features in vision(images).items():
        vectors = features.map.transpose(0, 1).flatten(1)
        result[layer] = SlotStatistics(vectors.mean(dim=1).clone(), vectors.std(dim=1).clone())
    return result


def in_dtype(model: DeViL, dtype: torch.dtype) -> DeViL:
    """The model with translator and language model in `dtype`; the backbone is shared."""
    if dtype == torch.float32:
        return model
    assert model.backbone is not None
    return DeViL(
        translator=copy.deepcopy(model.translator).to(dtype),
        language_model=copy.deepcopy(model.language_model).to(dtype),
        backbone_config=model.backbone_config,
        backbone_digest="",
        shapes=model.shapes,
        statistics=model.statistics,
        backbone=model.backbone,
    ).eval()


def caption_lengths(count: int, *, seed: int = 0) -> list[int]:
    """Tokens of captions as long as those of CC3M.

    Log-normal, fitted to the words of 2,000 captions of its validation file (mean 10.3, log-mean
    2.25, log-deviation 0.40), at 1.15 tokens for each word.
    """
    generator = torch.Generator().manual_seed(seed)
    words = (torch.randn(count, generator=generator) * 0.40 + 2.25).exp()
    return (words * 1.15).round().clamp(3, 60).int().tolist()


def caption_prefixes(
    lm: LanguageModel, captions: Sequence[str], rows: int, tokens: int = 3
) -> Tensor:
    """Embeddings of the first tokens of different captions: prefixes that a trained LM continues.

    Returns:
        (rows, tokens, hidden).
    """
    starts = dict.fromkeys(
        tuple(ids[:tokens]) for c in captions if len(ids := lm.caption_ids(c)) > tokens
    )
    chosen = list(starts)[:rows]
    if len(chosen) < rows:
        raise ConfigError(f"{len(chosen)} different beginnings of captions; {rows} are needed.")
    with torch.inference_mode():
        return lm.embed(torch.tensor(chosen, device=lm.device)).clone()
