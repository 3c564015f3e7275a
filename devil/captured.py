"""Greedy decoding in fixed shapes, so that a GPU can record a step once and play it again.

A step is some hundred small kernels, and a GPU waits for Python before each of them. Played from a
recording (a CUDA graph) they follow one another at once; but a recording knows addresses and
shapes, so here all that changes from token to token is written in place: keys and values, the mask
over positions not yet filled, the place of the next one. Rows that have ended go on in vain until
all that is left fits half the rows, for which there is a recording of its own.

The fixed step itself runs anywhere and is tested on a CPU; the recordings are made on a GPU alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from devil.cache import ReservedCache, remaining
from devil.errors import ConfigError
from devil.language_model import LanguageModel
from devil.likeliest import likeliest
from devil.prefill import Prefill

PATIENCE = 8
"""Steps after which it is asked which rows have ended: to ask is to wait for the GPU."""
LEAST = 16
"""Rows that are not halved any more."""


class Written(NamedTuple):
    """What was decoded; a row's tokens behind its length are fillings."""

    tokens: Int[Tensor, "batch token"]
    scores: Float[Tensor, "batch"]
    lengths: Int[Tensor, "batch"]


def check_captured(language_model: LanguageModel) -> None:
    """Whether steps of a language model can be recorded.

    Raises:
        ConfigError: it is not on a GPU, or takes no mask and positions of ours.
    """
    if language_model.device.type != "cuda":
        raise ConfigError(
            f"captured is True, but the language model is on {str(language_model.device)!r}; steps "
            "are recorded on a GPU ('cuda') alone. Leave captured at False here."
        )
    if not language_model.packs:
        raise _unfit(language_model)


def _unfit(language_model: LanguageModel) -> ConfigError:
    return ConfigError(
        f"captured is True, but language model {language_model.config.name!r} "
        f"({type(language_model.model).__name__}) does not heed a mask and positions from outside, "
        "or keeps more than keys and values; leave captured at False for it."
    )


class FixedGreedy:
    """Greedy captions of one batch of prefixes after another.

    Batches whose states share their memory (`prefills`) share their recordings, too.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        longest: int,
        *,
        captured: bool = False,
        patience: int = PATIENCE,
    ) -> None:
        """Decode at most `longest` tokens; `captured` records the steps (see `check_captured`)."""
        self.lm, self.longest = language_model, longest
        self.captured, self.patience = captured, patience
        self._rows: _FixedRows | None = None

    @torch.inference_mode()
    def __call__(self, state: Prefill) -> Written:
        """What follows after prefixes that have been run; uses up their state.

        Raises:
            ConfigError: the language model's state is more than keys and values.
        """
        if not isinstance(state.cache, ReservedCache):
            raise _unfit(self.lm)
        if self._rows is None or self._rows.cache is not state.cache:
            self._rows = _FixedRows(self.lm, state, self.longest, captured=self.captured)
        rows = self._rows
        size = rows.begin(state)
        for step in range(1, self.longest):
            rows.step(size)
            if step % self.patience == 0:
                size = rows.shrink(size, self.patience)
                if not size:
                    break
        return rows.written(len(state.last))


class _FixedRows:
    """A batch as it is decoded: all of it stays where it is and is written in place."""

    def __init__(
        self, language_model: LanguageModel, state: Prefill, longest: int, *, captured: bool
    ) -> None:
        self.lm, self.cache = language_model, state.cache
        self.captured = captured
        (rows, room), device = self.cache.size, state.last.device
        self.sizes = [rows]
        while self.sizes[-1] > LEAST:
            self.sizes.append(-(-self.sizes[-1] // 2))
        whole: dict[str, Any] = {"dtype": torch.long, "device": device}
        self.token = torch.zeros(rows, **whole)
        self.going = torch.zeros(rows, dtype=torch.bool, device=device)
        # The last row of what is written takes what rows say that nobody asks for any more.
        self.owner = torch.full((rows,), rows, **whole)
        self.tokens = torch.zeros(rows + 1, longest, **whole)
        self.scores = torch.zeros(rows + 1, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(rows + 1, **whole)
        self.place, self.count = torch.zeros(1, **whole), torch.zeros(1, **whole)
        self.mask = torch.zeros(1, 1, 1, room, dtype=torch.bool, device=device)
        self.caches = {size: self.cache.fixed(size, self.place) for size in self.sizes}
        self._recordings: dict[int, Callable[[], None] | None] = {}

    def begin(self, state: Prefill) -> int:
        """The first token of each prefix; returns how many rows take part."""
        before, count = state.cache.get_seq_length(), len(state.last)
        self.cache.clear_rest()
        self.place.fill_(before)
        self.count.zero_()
        self.mask.zero_()[..., :before] = True
        self.going.zero_()[:count] = True
        self.owner.fill_(len(self.going))[:count] = torch.arange(count, device=self.owner.device)
        for told in (self.tokens, self.scores, self.lengths):
            told.zero_()
        self._say(state.last, count)
        return self._fitting(count)

    def _fitting(self, count: int) -> int:
        return min(size for size in self.sizes if size >= count)

    def step(self, size: int) -> None:
        """One more token of the first rows: run, or played from its recording.

        Before it is recorded a step runs once as it is: what libraries make on first use must not
        be made in a recording.
        """
        if not self.captured or size not in self._recordings:
            self._recordings.setdefault(size, None)
            self._step(size)
            return
        play = self._recordings[size]
        if play is None:
            play = self._recordings[size] = _recorded(lambda: self._step(size))
        play()

    def _step(self, size: int) -> None:
        self.mask.index_fill_(3, self.place, True)
        hidden = self.lm.hidden(
            self.lm.embed(self.token[:size, None]),
            attention_mask=self.mask.expand(size, -1, -1, -1),
            position_ids=self.place.expand(size, 1),
            past_key_values=self.caches[size],
            use_cache=True,
        ).last_hidden_state
        self.place += 1
        self._say(hidden[:, -1], size)

    def _say(self, hidden: Float[Tensor, "row hidden"], size: int) -> None:
        going, owner = self.going[:size], self.owner[:size]
        token, score = likeliest(self.lm, hidden)
        token = token.masked_fill(~going, self.lm.eos)
        self.token[:size] = token
        self.tokens[owner, self.count] = token
        self.scores.index_add_(0, owner, score.double() * going)
        self.lengths.index_add_(0, owner, going.long())
        going &= token != self.lm.eos
        self.count += 1

    def shrink(self, size: int, steps: int) -> int:
        """Move rows that go on to the front, if half of the rows hold them; returns how many then.

        Args:
            size: rows that take part.
            steps: that were made since this was last asked.
        """
        self.cache.count(steps)
        left = remaining(self.going[:size])
        count = len(left)
        if not count:
            return 0
        smaller = self._fitting(count)
        if smaller < size:
            self.cache.batch_select_indices(left)
            for rows in (self.token, self.owner):
                rows[:count] = rows[left]
            self.owner[count:] = len(self.owner)
            self.going[:count] = True
            self.going[count:] = False
        return smaller

    def written(self, count: int) -> Written:
        """All that was said by the first rows."""
        return Written(self.tokens[:count], self.scores[:count], self.lengths[:count])


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """A step as a CUDA graph; to record does not run it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
