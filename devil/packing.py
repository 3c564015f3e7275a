"""Several texts in one row, behind one prefix; each sees the prefix and itself alone.

An image has several captions, and a location several queries: packed, the prefix is computed once,
and rows of a batch are of similar length, so that little of the work goes into padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

FILLING = -1


class Packed(NamedTuple):
    """Texts one after another in each row, filled up to one width."""

    ids: Int[Tensor, "row token"]
    owner: Int[Tensor, "row token"]
    """Number of the text that a token belongs to, in its row; `FILLING` behind the last one."""
    place: Int[Tensor, "row token"]
    """A token's place in its text, from 0."""

    def positions(self, before: int) -> Int[Tensor, "row position"]:
        """Position ids of a prefix of `before` tokens and of the texts, each right behind it."""
        rows = self.ids.shape[0]
        prefix = torch.arange(before, device=self.ids.device).expand(rows, before)
        return torch.cat([prefix, self.place + before], dim=1)

    def mask(self, before: int) -> Bool[Tensor, "row head position position"]:
        """Which positions see which (True): (row, 1, query, key), prefix first."""
        rows, width = self.ids.shape
        whole = before + width
        sees = torch.ones(whole, whole, dtype=torch.bool, device=self.ids.device).tril()
        sees = sees.expand(rows, whole, whole).clone()
        sees[:, before:, before:] &= self.owner[:, :, None] == self.owner[:, None]
        return sees[:, None]


def pack(rows: Sequence[Sequence[Sequence[int]]], fill: int, device: torch.device) -> Packed:
    """Put each row's texts of token ids behind one another; `fill` pads rows to the longest."""
    width = max((sum(map(len, texts)) for texts in rows), default=0)
    ids = torch.full((len(rows), width), fill)
    owner = torch.full((len(rows), width), FILLING)
    place = torch.zeros(len(rows), width, dtype=torch.long)
    for row, texts in enumerate(rows):
        end = 0
        for number, text in enumerate(texts):
            span = slice(end, end := end + len(text))
            ids[row, span] = torch.tensor(text, dtype=torch.long)
            owner[row, span] = number
            place[row, span] = torch.arange(len(text))
    return Packed(ids.to(device), owner.to(device), place.to(device))
