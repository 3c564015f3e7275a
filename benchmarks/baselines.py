"""What the engine is measured against: the method's loops as published, and a batched version.

`plain_*` run vision, translator and language model anew for each location and query, and decode
without a cache, as the code published with DeViL (arXiv 2309.01617) does. `batched_*` are what one
writes with transformers at hand: all rows at once, `generate` with `inputs_embeds`, logits of whole
sequences. Both compute what the engine computes; `tests/reference.py` says what that is.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from devil.language_model import LanguageModel
from devil.model import DeViL
from devil.saliency import Query
from devil.translator import Translator

Images = Float[Tensor, "batch 3 height width"]
IGNORED = -100
"""Label of positions that do not count in the loss."""


def masked_prefix(
    translator: Translator,
    features: Mapping[str, Float[Tensor, "batch channels"]],
    visible: Bool[Tensor, "batch slot"],
) -> Float[Tensor, "batch prefix hidden"]:
    """Prefixes from tokens of all slots, of which the hidden ones are masked.

    A slot without features gets zeros; `visible` must hide it.
    """
    batch = visible.shape[0]
    given = next(iter(features.values()))
    tokens = []
    for index, slot in enumerate(translator.slots):
        mean = translator.get_buffer(f"feature_mean_{index}")
        std = translator.get_buffer(f"feature_std_{index}")
        vectors = features.get(slot, given.new_zeros(batch, len(mean)))
        token = translator.project[index]((vectors.to(mean.dtype) - mean) / std)
        token = token.unflatten(1, (-1, translator.config.width))
        tokens.append(token + translator.slot_embedding[index])
    tokens.append(translator.prefix_tokens.expand(batch, -1, -1))
    count = translator.config.prefix_length
    shown = visible.repeat_interleave(translator.config.tokens_per_layer, dim=1)
    hidden = ~torch.cat([shown, shown.new_ones(batch, count)], dim=1)
    mixed = translator.encoder(torch.cat(tokens, dim=1), src_key_padding_mask=hidden)
    return translator.output(mixed[:, -count:])


def location_prefixes(
    model: DeViL, images: Images, layer: str, locations: Sequence[int]
) -> Float[Tensor, "row prefix hidden"]:
    """Vision, and the translator on L + n tokens for some locations of one image's layer."""
    assert model.backbone is not None and len(images) == 1
    feature_map = model.backbone(images)[layer].map
    vectors = feature_map[0].flatten(1).T[list(locations)]
    translator = model.translator
    visible = torch.tensor([[slot == layer for slot in translator.slots]], device=vectors.device)
    return masked_prefix(translator, {layer: vectors}, visible.expand(len(vectors), -1))


@torch.no_grad()
def plain_saliency(
    model: DeViL, images: Images, layer: str, locations: Sequence[int], queries: Sequence[Query]
) -> Float[Tensor, "location query"]:
    """Σ_t log p(q_t | prefix, q_<t): the whole chain of models for each location and query."""
    rows = []
    for location in locations:
        scores = []
        for query in queries:
            prefix = location_prefixes(model, images, layer, [location])
            scores.append(sequence_scores(model.language_model, prefix, [query])[0])
        rows.append(torch.stack(scores))
    return torch.stack(rows)


@torch.no_grad()
def batched_saliency(
    model: DeViL,
    images: Images,
    layer: str,
    locations: Sequence[int],
    queries: Sequence[Query],
    *,
    batch_size: int = 256,
) -> Float[Tensor, "location query"]:
    """The same: one pass of vision and translator, and a row for each location and query."""
    prefix = location_prefixes(model, images, layer, locations)
    rows = prefix.repeat_interleave(len(queries), dim=0)
    asked = list(queries) * len(locations)
    parts = [
        sequence_scores(model.language_model, rows[i : i + batch_size], asked[i : i + batch_size])
        for i in range(0, len(rows), batch_size)
    ]
    return torch.cat(parts).unflatten(0, (len(locations), len(queries)))


@torch.no_grad()
def sequence_scores(
    language_model: LanguageModel, prefix: Float[Tensor, "row prefix hidden"], rows: Sequence[Query]
) -> Float[Tensor, "row"]:
    """Scores of one query for each prefix, from the logits of all positions."""
    texts = [[*query.prompt_ids, *query.ids] for query in rows]
    width = max(map(len, texts))
    device = prefix.device
    ids = torch.tensor([[*t, *[language_model.eos] * (width - len(t))] for t in texts])
    scored = torch.tensor(
        [
            [len(q.prompt_ids) <= i < len(t) for i in range(width)]
            for q, t in zip(rows, texts, strict=True)
        ]
    )
    ids, scored = ids.to(device), scored.to(device)
    start = language_model.start(prefix)
    embeddings = torch.cat([start, language_model.embed(ids)], dim=1)
    logits = language_model.model(inputs_embeds=embeddings, use_cache=False).logits
    table = logits.float()[:, start.shape[1] - 1 : -1].log_softmax(dim=-1)
    found = table.gather(2, ids[:, :, None])[:, :, 0]
    return (found * scored).sum(dim=1)


@torch.no_grad()
def plain_captions(
    model: DeViL, images: Images, layer: str, locations: Sequence[int], longest: int
) -> list[list[int]]:
    """Greedy token ids of each location in turn; each token runs the whole sequence again."""
    return [
        plain_caption(
            model.language_model, location_prefixes(model, images, layer, [location]), longest
        )
        for location in locations
    ]


@torch.no_grad()
def plain_caption(
    language_model: LanguageModel, prefix: Float[Tensor, "1 prefix hidden"], longest: int
) -> list[int]:
    """Greedy token ids up to and with the end of text, without a cache."""
    embeddings, ids = language_model.start(prefix), []
    while len(ids) < longest:
        logits = language_model.model(inputs_embeds=embeddings, use_cache=False).logits
        token = logits[:, -1].argmax(dim=-1)
        ids.append(int(token))
        if ids[-1] == language_model.eos:
            break
        embeddings = torch.cat([embeddings, language_model.embed(token[:, None])], dim=1)
    return ids


@torch.no_grad()
def batched_captions(
    model: DeViL, images: Images, layer: str, locations: Sequence[int], longest: int
) -> list[list[int]]:
    """The same with transformers' `generate` over all locations."""
    prefix = location_prefixes(model, images, layer, locations)
    return generated(model.language_model, prefix, longest)


@torch.no_grad()
def generated(
    language_model: LanguageModel,
    prefix: Float[Tensor, "row prefix hidden"],
    longest: int,
    *,
    top_p: float | None = None,
) -> list[list[int]]:
    """What transformers' `generate` writes, up to and with the end of text.

    Args:
        language_model: the frozen LM.
        prefix: one for each row.
        longest: most tokens.
        top_p: sample from the smallest set of tokens with this probability; None: greedy.
    """
    start = language_model.start(prefix)
    sampling = {"do_sample": False} if top_p is None else {"do_sample": True, "top_p": top_p}
    rows = language_model.model.generate(
        inputs_embeds=start,
        attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=start.device),
        max_new_tokens=longest,
        eos_token_id=language_model.eos,
        pad_token_id=language_model.eos,
        **sampling,
        **({} if top_p is None else {"top_k": 0}),
    ).tolist()
    end = language_model.eos
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@torch.no_grad()
def batched_vocabulary(
    model: DeViL, images: Images, layer: str, locations: Sequence[int]
) -> Float[Tensor, "location vocab"]:
    """log p of each token right after each location's prefix, from logits of all positions."""
    start = model.language_model.start(location_prefixes(model, images, layer, locations))
    logits = model.language_model.model(inputs_embeds=start, use_cache=False).logits
    return logits.float().log_softmax(dim=-1)[:, -1]


def padded_labels(
    captions: Sequence[Sequence[int]], eos: int, device: torch.device
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row token"]]:
    """Token ids of captions and EOS in one rectangle, and the labels, `IGNORED` in the padding."""
    width = max(map(len, captions)) + 1
    ids = torch.tensor([[*c, *[eos] * (width - len(c))] for c in captions])
    real = torch.tensor([[i <= len(c) for i in range(width)] for c in captions])
    return ids.to(device), ids.masked_fill(~real, IGNORED).to(device)


def plain_training_loss(
    translator: Translator,
    language_model: LanguageModel,
    features: Mapping[str, Float[Tensor, "batch channels"]],
    visible: Bool[Tensor, "batch slot"],
    captions: Sequence[Sequence[int]],
) -> Tensor:
    """Mean loss of padded captions from the logits of all positions; a row for each caption.

    Tokens of all layers enter the translator, hidden or not, and an image with several captions
    enters as often.
    """
    each = len(captions) // len(visible)
    repeated = {slot: v.repeat_interleave(each, dim=0) for slot, v in features.items()}
    prefix = masked_prefix(translator, repeated, visible.repeat_interleave(each, dim=0))
    start = language_model.start(prefix)
    ids, labels = padded_labels(captions, language_model.eos, prefix.device)
    embeddings = torch.cat([start, language_model.embed(ids)], dim=1)
    logits = language_model.model(inputs_embeds=embeddings, use_cache=False).logits
    before = labels.new_full((len(labels), start.shape[1]), IGNORED)
    targets = torch.cat([before, labels], dim=1)
    shifted = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(shifted, targets[:, 1:].flatten(), ignore_index=IGNORED)


def batched_training_loss(
    translator: Translator,
    language_model: LanguageModel,
    features: Mapping[str, Float[Tensor, "batch channels"]],
    visible: Bool[Tensor, "batch slot"],
    captions: Sequence[Sequence[int]],
) -> Tensor:
    """The same with the prefix of an image made once, and logits of caption positions alone."""
    each = len(captions) // len(visible)
    prefix = masked_prefix(translator, features, visible).repeat_interleave(each, dim=0)
    ids, labels = padded_labels(captions, language_model.eos, prefix.device)
    width = labels.shape[1]
    embeddings = torch.cat([language_model.start(prefix), language_model.embed(ids[:, :-1])], dim=1)
    states = language_model.hidden(embeddings, use_cache=False).last_hidden_state
    # `logits_to_keep`, and a copy, without which the head is a slow batched product.
    logits = language_model.logits(states[:, -width:].contiguous())
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
