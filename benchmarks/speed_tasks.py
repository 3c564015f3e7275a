"""Dense captions, saliency, the vocabulary's maps and samples, as cases to measure."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import (
    batched_captions,
    batched_saliency,
    batched_vocabulary,
    generated,
    plain_caption,
    plain_captions,
    plain_saliency,
    sequence_scores,
)
from benchmarks.cases import Case, Comparison
from benchmarks.roofline import Phase, decoding, tokens_behind, translation, vision
from benchmarks.speed_models import Explained
from benchmarks.timing import Side
from devil.config import DecodingConfig
from devil.decoding import greedy_captions
from devil.explanation import Caption
from devil.language_model import LanguageModel
from devil.model import DeViL
from devil.saliency import Query, query_log_probabilities, vocabulary_log_probabilities
from devil.sampling import sample_captions

EXACT, LOW = 1e-4, 0.05
"""Difference of a score in nats for each token of a query: the largest in float32, and the mean in
lower precision."""
CAPTION_TOLERANCE = 0.05
"""Largest difference of the mean log-probability of a token, in nats, in low precision."""
TOP_P = 0.9
BATCHED_ROWS = 245
"""Beyond so many rows (queries × locations), a part of the batched version is measured."""


@torch.inference_mode()
def location_prefix(model: DeViL, images: Tensor, layer: str) -> Tensor:
    """The engine's way from an image to a prefix for each location of a layer."""
    assert model.backbone is not None
    dtype = model.translator.prefix_tokens.dtype
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        feature_map = model.backbone(images)[layer].map
    return model.prefix({layer: feature_map[0].flatten(1).T.contiguous()})


def queries_of_lengths(lengths: Sequence[int], vocabulary: int, *, seed: int = 0) -> list[Query]:
    """Queries of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index, length in enumerate(lengths):
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        found.append(Query(f"query {index}", (), tuple(ids)))
    return found


def saliency_case(
    explained: Explained,
    models: Mapping[str, DeViL],
    baseline: str,
    locations: int,
    lengths: Sequence[int],
    *,
    plain_locations: int,
) -> Case:
    """Scores of queries at all locations of one layer, from an image on.

    Args:
        explained: names, image and layers.
        models: by number format.
        baseline: number format of the loops that are measured against.
        locations: of the layer.
        lengths: tokens of each query.
        plain_locations: locations at which the plain loop is measured.
    """
    layer, images, model = explained.layers[locations], explained.images, models[baseline]
    vocabulary = model.language_model.model.get_input_embeddings().num_embeddings
    queries = queries_of_lengths(lengths, vocabulary)
    part = min(locations, max(1, BATCHED_ROWS // len(queries)))

    def ours(chosen: DeViL) -> Tensor:
        prefix = location_prefix(chosen, images, layer)
        return query_log_probabilities(chosen.language_model, prefix, queries)

    def plain() -> Tensor:
        return plain_saliency(model, images, layer, range(plain_locations), queries)

    def batched() -> Tensor:
        return batched_saliency(model, images, layer, range(part), queries)

    def compare(results: Mapping[str, Any], dtype: str) -> Comparison:
        ours = results[dtype]
        pairs = [(ours[: len(results[name])], results[name]) for name in ("plain", "batched")]
        return close_scores(pairs, max(lengths), exact=dtype == baseline == "float32")

    def phases(result: Tensor) -> list[Phase]:
        rest = sum(length - 1 for length in lengths)
        lm, before = model.language_model, prefix_positions(model)
        behind = [tokens_behind(lm, locations, before, rest, rest)] if rest else []
        return [*first_phases(explained, models[baseline], layer, locations), *behind]

    return Case(
        task="saliency",
        setting=f"{len(queries)} queries of {spread(lengths)} tokens, {locations} locations",
        model=explained.name,
        ours={d: Side(run=lambda m=m: ours(m), dtype=d) for d, m in models.items()},
        plain=Side(run=plain, share=plain_locations / locations, dtype=baseline),
        batched=Side(run=batched, share=part / locations, dtype=baseline),
        compare=compare,
        phases=phases,
    )


def vocabulary_case(
    explained: Explained, models: Mapping[str, DeViL], baseline: str, locations: int
) -> Case:
    """The score of every word of the vocabulary, beside that of one query of one token."""
    layer, images, model = explained.layers[locations], explained.images, models[baseline]
    size = model.language_model.model.get_output_embeddings().weight.shape[0]
    words = queries_of_lengths([1] * 4, size)
    places = [query.ids[0] for query in words]

    def ours(chosen: DeViL) -> Tensor:
        prefix = location_prefix(chosen, images, layer)
        return vocabulary_log_probabilities(chosen.language_model, prefix)

    def one(chosen: DeViL) -> Tensor:
        prefix = location_prefix(chosen, images, layer)
        return query_log_probabilities(chosen.language_model, prefix, words[:1])

    def compare(results: Mapping[str, Any], dtype: str) -> Comparison:
        table = results[dtype][:, :size]
        pairs = [(table, results["batched"]), (table[:2, places], results["plain"])]
        return close_scores(pairs, 1, exact=dtype == baseline == "float32")

    return Case(
        task="vocabulary",
        setting=f"{size} words, {locations} locations",
        model=explained.name,
        ours={d: Side(run=lambda m=m: ours(m), dtype=d) for d, m in models.items()},
        plain=Side(
            run=lambda: plain_saliency(model, images, layer, range(2), words),
            share=2 * len(words) / (locations * size),
            dtype=baseline,
        ),
        batched=Side(
            run=lambda: batched_vocabulary(model, images, layer, range(locations)), dtype=baseline
        ),
        compare=compare,
        phases=lambda result: first_phases(explained, models[baseline], layer, locations),
        others={f"one_query_{d}": Side(run=lambda m=m: one(m), dtype=d) for d, m in models.items()},
    )


def dense_case(
    explained: Explained,
    models: Mapping[str, DeViL],
    baseline: str,
    locations: int,
    *,
    longest: int = 20,
    plain_locations: int = 4,
) -> Case:
    """A caption of each location of one layer, from an image on."""
    layer, images, model = explained.layers[locations], explained.images, models[baseline]
    config = DecodingConfig(max_new_tokens=longest)

    def ours(chosen: DeViL) -> list[Caption]:
        prefix = location_prefix(chosen, images, layer)
        return greedy_captions(chosen.language_model, prefix, config)

    def phases(result: list[Caption]) -> list[Phase]:
        start = prefix_positions(model)
        steps = decoding(model.language_model, start, rows_going(result))
        chain = first_phases(explained, models[baseline], layer, locations)
        return [*chain[:-1], *steps]

    return Case(
        task="dense",
        setting=f"{locations} locations, {longest} tokens",
        model=explained.name,
        ours={d: Side(run=lambda m=m: ours(m), dtype=d) for d, m in models.items()},
        plain=Side(
            run=lambda: plain_captions(model, images, layer, range(plain_locations), longest),
            share=plain_locations / locations,
            dtype=baseline,
        ),
        batched=Side(
            run=lambda: batched_captions(model, images, layer, range(locations), longest),
            dtype=baseline,
        ),
        compare=lambda results, dtype: same_captions(
            model.language_model, results, dtype, exact=dtype == baseline == "float32"
        ),
        phases=phases,
    )


def stopping_case(
    name: str,
    models: Mapping[str, LanguageModel],
    baseline: str,
    prefix: Tensor,
    *,
    longest: int = 20,
    plain_rows: int = 14,
) -> Case:
    """Captions of a trained language model, which end by themselves, from prefixes on."""
    lm, rows = models[baseline], len(prefix)
    config = DecodingConfig(max_new_tokens=longest)

    def phases(result: list[Caption]) -> list[Phase]:
        return decoding(lm, prefix.shape[1] + (lm.bos is not None), rows_going(result))

    return Case(
        task="dense",
        setting=f"{rows} prefixes, captions that end by themselves, at most {longest} tokens",
        model=name,
        ours={
            d: Side(run=lambda m=m: greedy_captions(m, prefix, config), dtype=d)
            for d, m in models.items()
        },
        plain=Side(
            run=lambda: [plain_caption(lm, prefix[i : i + 1], longest) for i in range(plain_rows)],
            share=plain_rows / rows,
            dtype=baseline,
        ),
        batched=Side(run=lambda: generated(lm, prefix, longest), dtype=baseline),
        compare=lambda results, dtype: same_captions(
            lm, results, dtype, exact=dtype == baseline == "float32"
        ),
        phases=phases,
    )


def samples_case(
    name: str,
    models: Mapping[str, LanguageModel],
    baseline: str,
    prefix: Tensor,
    *,
    samples: int = 1000,
    longest: int = 20,
    batched_samples: int = 200,
) -> Case:
    """Top-p samples from one prefix; `generate` has a row for each from the start.

    Args:
        name: of the language model.
        models: by number format.
        baseline: number format of `generate`.
        prefix: (1, prefix, hidden).
        samples: how many.
        longest: most tokens of each.
        batched_samples: how many are measured with `generate`.
    """
    lm, part = models[baseline], min(samples, batched_samples)

    def ours(chosen: LanguageModel) -> list[Caption]:
        given = prefix[0].to(chosen.model.get_input_embeddings().weight.dtype)
        return sample_captions(chosen, given, samples, top_p=TOP_P, max_new_tokens=longest)

    def batched() -> list[list[int]]:
        torch.manual_seed(0)
        return generated(lm, prefix.expand(part, -1, -1), longest, top_p=TOP_P)

    return Case(
        task="samples",
        setting=f"{samples} samples, {longest} tokens, top-p {TOP_P}",
        model=name,
        ours={d: Side(run=lambda m=m: ours(m), dtype=d) for d, m in models.items()},
        plain=None,
        batched=Side(run=batched, share=part / samples, dtype=baseline),
        compare=lambda results, dtype: as_likely(lm, prefix, results[dtype], results["batched"]),
        phases=lambda result: decoding(
            lm, prefix.shape[1] + (lm.bos is not None), [1, *rows_going(result)[1:]]
        ),
    )


def as_likely(
    lm: LanguageModel, prefix: Tensor, ours: Sequence[Caption], theirs: Sequence[list[int]]
) -> Comparison:
    """Whether samples are as likely on average as those of `generate`, within chance."""
    mine = torch.tensor([c.log_probability / c.tokens for c in ours])
    queries = [Query("", (), tuple(ids)) for ids in theirs]
    scores = sequence_scores(lm, prefix.expand(len(theirs), -1, -1), queries)
    other = scores.cpu() / torch.tensor([len(ids) for ids in theirs])
    apart = float((mine.mean() - other.mean()).abs())
    chance = float((mine.var() / len(mine) + other.var() / len(other)).sqrt())
    allowed = 4 * chance + LOW
    details = {"difference_in_log_probability": apart, "allowed": allowed}
    return Comparison(apart <= allowed, details)


def close_scores(pairs: Sequence[tuple[Tensor, Tensor]], tokens: int, *, exact: bool) -> Comparison:
    """Scores of the engine and of a baseline, where the longest query has so many tokens."""
    apart = [(one.float() - other.float()).abs() for one, other in pairs]
    largest = max(float(part.max()) for part in apart)
    mean = max(float(part.mean()) for part in apart)
    allowed = (EXACT if exact else LOW) * tokens
    details = {
        "largest_difference": largest,
        "mean_difference": mean,
        "allowed": allowed,
        "allowed_of": "largest" if exact else "mean",
    }
    return Comparison((largest if exact else mean) <= allowed, details)


def same_captions(
    lm: LanguageModel, results: Mapping[str, Any], dtype: str, *, exact: bool
) -> Comparison:
    """Captions against both baselines: equal tokens, or in low precision equally likely ones."""
    ours: list[Caption] = results[dtype]
    written = [(caption.text, caption.tokens) for caption in ours]
    batched = [(lm.text(ids), len(ids)) for ids in results["batched"]]
    plain = [(lm.text(ids), len(ids)) for ids in results["plain"]]
    same = sum(one == other for one, other in zip(written, batched, strict=True)) / len(written)
    details: dict[str, Any] = {
        "same_as_batched": same,
        "same_as_plain": sum(a == b for a, b in zip(written, plain, strict=False)) / len(plain),
        "different_captions": len(set(written)) / len(written),
        "tokens": sum(caption.tokens for caption in ours) / len(ours),
    }
    if exact:
        return Comparison(same == details["same_as_plain"] == 1.0, details)
    if "float32" in results:
        apart = abs(_mean_score(ours) - _mean_score(results["float32"]))
        details |= {"difference_in_log_probability": apart, "allowed": CAPTION_TOLERANCE}
        return Comparison(apart <= CAPTION_TOLERANCE, details)
    return Comparison(same >= 0.5, details)


def _mean_score(captions: Sequence[Caption]) -> float:
    return sum(c.log_probability for c in captions) / sum(c.tokens for c in captions)


def rows_going(captions: Sequence[Caption]) -> list[int]:
    """Rows that still take part at each token."""
    longest = max(caption.tokens for caption in captions)
    return [sum(caption.tokens > step for caption in captions) for step in range(longest)]


def prefix_positions(model: DeViL) -> int:
    """Positions of BOS and prefix."""
    return model.translator.config.prefix_length + (model.language_model.bos is not None)


def first_phases(explained: Explained, model: DeViL, layer: str, locations: int) -> list[Phase]:
    """Vision, translator, and the language model on the prefixes, with the head behind them."""
    assert model.backbone is not None
    channels = model.shapes[layer].channels
    start = prefix_positions(model)
    return [
        vision(model.backbone, explained.images),
        translation(model.translator, channels, locations),
        tokens_behind(model.language_model, locations, 0, start, 1),
    ]


def spread(lengths: Sequence[int]) -> str:
    """`1`, or `1-4`."""
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low}-{high}"
