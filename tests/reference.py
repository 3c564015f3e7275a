"""The equations of the method, restated slowly and plainly; the fast code must agree in float64.

One image, one location, one caption, one query at a time; loops instead of batches, the whole
sequence through the whole language model instead of caches. Nothing here imports the fast code.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mean_pool(feature_map: Tensor) -> Tensor:
    """(channels, height, width) → (channels,): the mean over all locations."""
    channels, height, width = feature_map.shape
    total = torch.zeros(channels, dtype=feature_map.dtype)
    for row in range(height):
        for column in range(width):
            total += feature_map[:, row, column]
    return total / (height * width)


def masked_mean(feature_map: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ_l w_l g_l / Σ_l w_l over locations l, row by row."""
    channels, height, width = feature_map.shape
    total, weight_sum = torch.zeros(channels, dtype=feature_map.dtype), 0.0
    for row in range(height):
        for column in range(width):
            weight = float(weights[row * width + column])
            total += weight * feature_map[:, row, column]
            weight_sum += weight
    return total / weight_sum


def smooth(feature_map: Tensor, kernel: int) -> Tensor:
    """Each location becomes the mean of its kernel × kernel neighbours that exist."""
    _, height, width = feature_map.shape
    reach = kernel // 2
    result = torch.zeros_like(feature_map)
    for row in range(height):
        for column in range(width):
            neighbours = [
                feature_map[:, r, c]
                for r in range(row - reach, row + reach + 1)
                for c in range(column - reach, column + reach + 1)
                if 0 <= r < height and 0 <= c < width
            ]
            result[:, row, column] = sum(neighbours) / len(neighbours)
    return result


def resize(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation between cell centres; beyond the outermost centres it is constant."""
    channels, height, width = feature_map.shape
    result = torch.zeros(channels, *size, dtype=feature_map.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            y = min(max((row + 0.5) * height / size[0] - 0.5, 0.0), height - 1.0)
            x = min(max((column + 0.5) * width / size[1] - 0.5, 0.0), width - 1.0)
            for r in range(height):
                for c in range(width):
                    share = max(0.0, 1 - abs(y - r)) * max(0.0, 1 - abs(x - c))
                    result[:, row, column] += share * feature_map[:, r, c]
    return result


def _linear(state: Mapping[str, Tensor], name: str, vector: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ vector + state[f"{name}.bias"]


def _layer_norm(state: Mapping[str, Tensor], name: str, vector: Tensor) -> Tensor:
    centred = vector - vector.mean()
    variance = (centred * centred).mean()
    return centred / torch.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(vector: Tensor) -> Tensor:
    return vector * 0.5 * (1 + torch.erf(vector / math.sqrt(2)))


def _attention(
    state: Mapping[str, Tensor],
    name: str,
    tokens: Sequence[Tensor],
    hidden: Sequence[bool],
    heads: int,
) -> list[Tensor]:
    width = len(tokens[0])
    size = width // heads
    weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    projected = [weight @ token + bias for token in tokens]
    results = []
    for asking in projected:
        parts = []
        for head in range(heads):
            query = asking[head * size : (head + 1) * size]
            scores = []
            for answering, is_hidden in zip(projected, hidden, strict=True):
                key = answering[width + head * size : width + (head + 1) * size]
                scores.append(-math.inf if is_hidden else float(query @ key) / math.sqrt(size))
            shares = [math.exp(score - max(scores)) for score in scores]
            values = [p[2 * width + head * size : 2 * width + (head + 1) * size] for p in projected]
            parts.append(sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares))
        results.append(_linear(state, f"{name}.out_proj", torch.cat(parts)))
    return results


def translator_prefix(
    state: Mapping[str, Tensor],
    slots: Sequence[str],
    features: Mapping[str, Tensor],
    visible: Collection[str],
    *,
    heads: int,
    depth: int,
) -> Tensor:
    """(prefix, embedding width) of one row: every slot has its token, those not visible are masked.

    A slot that is neither given nor visible gets zeros, which the mask must make irrelevant.
    """
    tokens, hidden = [], []
    for index, slot in enumerate(slots):
        mean, std = state[f"feature_mean_{index}"], state[f"feature_std_{index}"]
        vector = (features.get(slot, torch.zeros_like(mean)) - mean) / std
        slot_embedding = state["slot_embedding"][index]
        for part in _linear(state, f"project.{index}", vector).split(len(slot_embedding)):
            tokens.append(part + slot_embedding)
            hidden.append(slot not in visible)
    prefix = list(state["prefix_tokens"])
    tokens += prefix
    hidden += [False] * len(prefix)
    for block in range(depth):
        name = f"encoder.layers.{block}"
        normed = [_layer_norm(state, f"{name}.norm1", token) for token in tokens]
        mixed = _attention(state, f"{name}.self_attn", normed, hidden, heads)
        tokens = [token + update for token, update in zip(tokens, mixed, strict=True)]
        for i, token in enumerate(tokens):
            inner = _gelu(
                _linear(state, f"{name}.linear1", _layer_norm(state, f"{name}.norm2", token))
            )
            tokens[i] = token + _linear(state, f"{name}.linear2", inner)
    last = [_layer_norm(state, "encoder.norm", token) for token in tokens[-len(prefix) :]]
    return torch.stack([_linear(state, "output", token) for token in last])


def log_probabilities(language_model: Any, prefix: Tensor, ids: Sequence[int]) -> Tensor:
    """(1 + len(ids), vocab): log p of the next token after the prefix, and after each id.

    The sequence is [BOS, prefix, ids], or [prefix, ids] where the tokenizer has no BOS.
    """
    embedding = language_model.model.get_input_embeddings().weight
    before = language_model.tokenizer.bos_token_id
    parts = [] if before is None else [embedding[before][None]]
    parts.append(prefix.to(embedding.dtype))
    parts += [embedding[token][None] for token in ids]
    logits = language_model.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
    return torch.log_softmax(logits[-1 - len(ids) :], dim=-1)


def caption_loss(
    language_model: Any, prefix: Tensor, captions: Sequence[Sequence[int]]
) -> tuple[Tensor, int]:
    """Summed cross-entropy of captions and their EOS, and the number of labels.

    Args:
        language_model: the frozen LM.
        prefix: (batch, prefix, width).
        captions: the same number for each row of the batch, a row's own together.
    """
    each = len(captions) // len(prefix)
    total, count = prefix.sum() * 0, 0
    for index, ids in enumerate(captions):
        if not ids:
            continue
        table = log_probabilities(language_model, prefix[index // each], ids)
        for position, label in enumerate([*ids, language_model.tokenizer.eos_token_id]):
            total = total - table[position, label]
            count += 1
    return total, count


def greedy(language_model: Any, prefix: Tensor, longest: int) -> tuple[list[int], float]:
    """Token ids up to and with EOS, at most `longest`, and the sum of their log-probabilities."""
    ids: list[int] = []
    score = 0.0
    while len(ids) < longest:
        after = log_probabilities(language_model, prefix, ids)[-1]
        ids.append(int(after.argmax()))
        score += float(after[ids[-1]])
        if ids[-1] == language_model.tokenizer.eos_token_id:
            break
    return ids, score


def query_score(
    language_model: Any, prefix: Tensor, prompt: Sequence[int], query: Sequence[int]
) -> float:
    """Σ_t log p(q_t | prefix, prompt, q_<t): the prompt is not scored, and there is no EOS."""
    table = log_probabilities(language_model, prefix, [*prompt, *query])
    return sum(float(table[len(prompt) + t, token]) for t, token in enumerate(query))


def calibrated(
    scores: Sequence[float], calibration: str, lengths: Sequence[int], baseline: Sequence[float]
) -> list[float]:
    """One location's scores of all queries without the language model's own preferences."""
    if calibration == "pmi":
        return [score - own for score, own in zip(scores, baseline, strict=True)]
    if calibration == "mean":
        return [score / length for score, length in zip(scores, lengths, strict=True)]
    if calibration == "contrast":
        result = []
        for index, score in enumerate(scores):
            others = [math.exp(s) for i, s in enumerate(scores) if i != index]
            result.append(score - math.log(sum(others) / len(others)))
        return result
    return list(scores)


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, floor: float) -> float:
    """Linear from 0 to the peak in `warmup` steps, then to 0 at `steps`, but not below the floor.

    The first step is step 0 and already takes one part of the warm-up.
    """
    if step + 1 <= warmup:
        return peak / warmup * (step + 1)
    falling = peak * (1 - (step - warmup) / (steps - warmup))
    return falling if falling > floor else floor


def sample(
    language_model: Any, prefix: Tensor, chance: Sequence[float], top_p: float, temperature: float
) -> tuple[list[int], float]:
    """Token ids of one sample and their log-probability; `chance` holds a number per token.

    Tokens are put in order of probability; the first that together reach top-p share [0, 1).
    """
    ids: list[int] = []
    score = 0.0
    for number in chance:
        after = log_probabilities(language_model, prefix, ids)[-1]
        shares = torch.softmax(after / temperature, dim=-1).tolist()
        kept: list[int] = []
        for token in sorted(range(len(shares)), key=lambda t: -shares[t]):
            kept.append(token)
            if sum(shares[t] for t in kept) >= top_p:
                break
        reached, mass = 0.0, sum(shares[t] for t in kept)
        for token in kept:
            reached += shares[token] / mass
            if number < reached:
                break
        ids.append(token)
        score += float(after[token])
        if token == language_model.tokenizer.eos_token_id:
            break
    return ids, score
