"""Token sequences that share their beginnings, as one packed row behind a prefix.

A tree with one node per distinct beginning: every node sees the prefix, the nodes above it and
itself, at the position it has in its own sequence. So each beginning is computed once, and each
sequence comes out as if it stood alone.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

ROOT = -1
"""The node above all: the prefix's last position."""


class TokenTrie:
    """Nodes in the order in which they were added; parents stand before their children.

    Attributes:
        ids: token of each node.
        parents: node above each one, or `ROOT`.
        depths: place of each node in its sequence, from 0.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, sequence: Sequence[int]) -> list[int]:
        """Add a sequence; returns the node before each of its tokens and the one behind the last.

        The result starts with `ROOT` and has one entry more than the sequence.
        """
        path = [ROOT]
        for depth, token in enumerate(sequence):
            edge = (path[-1], token)
            if edge not in self._children:
                self._children[edge] = len(self.ids)
                self.ids.append(token)
                self.parents.append(path[-1])
                self.depths.append(depth)
            path.append(self._children[edge])
        return path

    def above(self, node: int) -> Iterator[int]:
        """A node and those above it, without the root."""
        while node != ROOT:
            yield node
            node = self.parents[node]

    def positions(self, before: int) -> Int[Tensor, "node"]:
        """Position of each node behind a prefix of `before` tokens."""
        return torch.tensor(self.depths, dtype=torch.long) + before

    def mask(self, before: int) -> Bool[Tensor, "node position"]:
        """Which positions each node sees (True): the prefix, then the nodes."""
        sees = torch.zeros(len(self), before + len(self), dtype=torch.bool)
        sees[:, :before] = True
        for node in range(len(self)):
            sees[node, [before + other for other in self.above(node)]] = True
        return sees
