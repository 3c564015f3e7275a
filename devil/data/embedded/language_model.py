"""Trains the language model of the embedded default on caption text alone.

It is a small Llama with a byte-level BPE tokenizer, in a folder that transformers reads.
"""

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from devil.data.embedded.fitting import batches, make_optimizer, one_thread
from devil.errors import DataError

log = logging.getLogger(__name__)

_CONTEXT = 128
_HINTS = 10
_HINT_WORDS = 3
_HINT_NOISE = 0.3
_WITHOUT_HINT = 0.1
_CAPTIONS_PER_STEP = 3


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


@one_thread()
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
    depth: int = 3,
    heads: int = 4,
) -> LanguageModelReport:
    """Trains a small Llama on caption text and saves it with its tokenizer.

    A training text is a caption, closed by the end token, and most often opened by hints: blends of
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
    log.info("language model: perplexity %.2f; it says %r", report.perplexity, report.samples[0])
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
    optimizer, schedule = make_optimizer([model], learning_rate, steps)
    model.train()
    for step, rows in enumerate(batches(len(texts), batch_size, steps, generator)):
        captions = []
        for text in (texts[row] for row in rows.tolist()):
            order = torch.randperm(len(text), generator=generator).tolist()
            captions += [[*text[i], tokenizer.eos_token_id] for i in order[:_CAPTIONS_PER_STEP]]
        hinted = torch.rand(len(captions), generator=generator) >= _WITHOUT_HINT
        losses = [
            _next_token_loss(model, tokenizer, some, hints=hints, reduction="sum")
            for some, hints in _split(model, captions, hinted.tolist(), generator)
        ]
        loss = torch.stack(losses).sum() / sum(map(len, captions))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log.info("language model step %d of %d: loss %.3f", step + 1, steps, loss.item())
    model.eval()


def _split(
    model: Any,
    captions: Sequence[list[int]],
    hinted: Sequence[bool],
    generator: torch.Generator,
) -> Iterator[tuple[list[list[int]], Tensor | None]]:
    """Captions that get hints, with these, and captions that get none."""
    some = [caption for caption, hint in zip(captions, hinted, strict=True) if hint]
    rest = [caption for caption, hint in zip(captions, hinted, strict=True) if not hint]
    if some:
        yield some, _hints(model, some, generator)
    if rest:
        yield rest, None


def _hints(model: Any, captions: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
    """As many embeddings for each caption as a prefix has: (caption, hint, width).

    Each is a blend of a few of the caption's words with some noise: a prefix is learned by small
    steps, so what lies between words must be readable, too.
    """
    shape = (_HINTS, _HINT_WORDS)
    drawn = [
        torch.tensor(caption)[torch.randint(len(caption) - 1, shape, generator=generator)]
        for caption in captions
    ]
    weights = (2 * torch.randn(len(captions), *shape, generator=generator)).softmax(dim=-1)
    blend = (weights[..., None] * model.get_input_embeddings()(torch.stack(drawn))).sum(dim=2)
    scale = _HINT_NOISE * blend.detach().square().mean().sqrt()
    return blend + scale * torch.randn(blend.shape, generator=generator)


def _next_token_loss(
    model: Any,
    tokenizer: Any,
    texts: Sequence[list[int]],
    *,
    hints: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of texts after the start token and hints (text, hint, width), if any."""
    pad = tokenizer.pad_token_id
    rows = [torch.tensor([tokenizer.bos_token_id, *text][:_CONTEXT]) for text in texts]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    embeddings = model.get_input_embeddings()(tokens[:, :-1])
    if hints is not None:
        embeddings = torch.cat([embeddings[:, :1], hints, embeddings[:, 1:]], dim=1)
    logits = model(inputs_embeds=embeddings).logits[:, -(tokens.shape[1] - 1) :]
    labels = tokens[:, 1:].flatten()
    return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=pad, reduction=reduction)


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
