"""The whole vocabulary at every location: likeliest words, and the map of any word.

One pass over the prefixes scores all next tokens (DeViL, arXiv 2309.01617). Kept are the hidden
states and the normalisers, a few kilobytes per location, out of which the map of any word that is
one token follows by a product.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devil.errors import QueryError
from devil.explanation import WordScore
from devil.language_model import LanguageModel
from devil.memory import head_rows
from devil.prefill import Prefill, prefills
from devil.saliency import behind, prompt_ids

LEAST = 1e-4
"""Words below this probability are not ranked by how much a location raises them."""


class Readout(NamedTuple):
    """What the language model would say next after some prefixes, in full."""

    hidden: Float[Tensor, "row hidden"]
    normaliser: Float[Tensor, "row"]
    """logsumexp over the vocabulary."""
    top: Int[Tensor, "row top"]
    """Ids of the best words, best first."""
    scores: Float[Tensor, "row top"]
    """Scores of these."""


@torch.inference_mode()
def read_vocabulary(
    language_model: LanguageModel,
    prefix: Float[Tensor, "row prefix hidden"],
    *,
    top: int = 10,
    prompt: str = "",
    baseline: Float[Tensor, "vocab"] | None = None,
    batch_size: int = 512,
    memory_gb: float | None = None,
) -> Readout:
    """The best words after each prefix, and what any word's score follows from.

    Args:
        language_model: the frozen LM.
        prefix: one prefix for each row.
        top: how many words per row, at most.
        prompt: text that stands between prefix and word.
        baseline: log-probabilities that are taken off before ranking; words below a probability
            of `LEAST` are then left out.
        batch_size, memory_gb: see `devil.config.DecodingConfig`.
    """
    before = prompt_ids(language_model, prompt)
    parts = [
        _read(language_model, state, before, top, baseline)
        for state in prefills(
            language_model,
            prefix,
            len(before),
            step=max(len(before), 1),
            batch_size=batch_size,
            memory_gb=memory_gb,
        )
    ]
    return Readout(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _read(
    language_model: LanguageModel,
    state: Prefill,
    before: Sequence[int],
    top: int,
    baseline: Tensor | None,
) -> Readout:
    hidden = behind(language_model, state, before)
    words = torch.zeros(language_model.vocabulary, dtype=torch.bool, device=hidden.device)
    words[list(language_model.words.values())] = True
    parts = []
    for rows in hidden.split(head_rows(language_model)):
        logits = language_model.logits(rows)
        normaliser = logits.logsumexp(dim=-1)
        logits -= normaliser[:, None]
        if baseline is not None:
            rare = logits < np.log(LEAST)
            logits = (logits - baseline).masked_fill_(rare, -torch.inf)
        logits.masked_fill_(~words, -torch.inf)
        scores, ids = logits.topk(min(top, len(language_model.words)), dim=-1)
        parts.append(Readout(rows, normaliser, ids, scores))
    return Readout(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def word_scores(language_model: LanguageModel, readout: Readout) -> list[tuple[WordScore, ...]]:
    """The best words of each row, best first; those that were not ranked are left out."""
    names = {token: word for word, token in language_model.words.items()}
    return [
        tuple(
            WordScore(names[token], score)
            for token, score in zip(ids, scores, strict=True)
            if score > -torch.inf
        )
        for ids, scores in zip(readout.top.tolist(), readout.scores.tolist(), strict=True)
    ]


class VocabularyMaps:
    """The vocabulary at every location of one picture and layer.

    Attributes:
        layer: the layer's name.
        grid: height and width.
        top: the best words of each location, [row][column], best first.
    """

    def __init__(
        self,
        layer: str,
        grid: tuple[int, int],
        readout: Readout,
        language_model: LanguageModel,
        baseline: Float[Tensor, "vocab"] | None = None,
    ) -> None:
        """Cut a read-out of height × width rows into a map."""
        self.layer, self.grid = layer, grid
        self._readout, self._language_model, self._baseline = readout, language_model, baseline
        cells = word_scores(language_model, readout)
        height, width = grid
        self.top = tuple(tuple(cells[r * width : (r + 1) * width]) for r in range(height))

    @property
    def words(self) -> tuple[str, ...]:
        """All words that have a map."""
        return tuple(self._language_model.words)

    @torch.inference_mode()
    def map(self, word: str) -> np.ndarray:
        """A word's score at each location: float32, (height, width).

        Raises:
            QueryError: the language model has no single token for the word.
        """
        lm = self._language_model
        token = lm.words.get(lm.clean(word))
        if token is None:
            raise QueryError(
                f"word {word!r} is not one token of {lm.config.name}; ask for it as a query, or "
                "for one of `words`."
            )
        ids = torch.tensor([token], device=self._readout.hidden.device)
        scores = lm.logits(self._readout.hidden, ids)[:, 0] - self._readout.normaliser
        if self._baseline is not None:
            scores = scores - self._baseline[token]
        return scores.float().cpu().numpy().reshape(self.grid)
