"""How a layer's output is laid out: which axis is which, and which tokens are no patches.

Libraries disagree: (batch, channels, height, width), (batch, height, width, channels),
(batch, token, channels) with or without leading tokens. `Layout.of` finds it out once from the
output on two square pictures, where height equals width; `Layout.read` then makes maps of any
batch. What cannot be told for sure is refused, never guessed.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from devil.types import LayerFeatures

PROBES = 2
"""Pictures in the probe: an output of another batch size has no row per picture."""


@dataclass(frozen=True, kw_only=True)
class LayerOutput:
    """What an architecture says of the tensors inside it."""

    prefix_tokens: int = 0
    """Leading tokens of a (batch, token, channels) output that are no patches."""
    class_token: bool = False
    """The first of them is a class token."""
    channels_last: bool = False
    """Maps whose sides are all equal are (batch, height, width, channels)."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the output of one layer is read."""

    kind: Literal["channels first", "channels last", "tokens", "vector"]
    """What the axes are."""
    batch_first: bool = True
    """Tokens are (batch, token, channels), not (token, batch, channels)."""
    prefix_tokens: int = 0
    """Leading tokens that are no patches."""
    class_token: bool = False
    """The first of them is a class token."""

    @classmethod
    def of(cls, output: Tensor, family: LayerOutput) -> "Layout | None":
        """The layout of a layer's output on `PROBES` square pictures; None: it is no map."""
        if output.ndim == 3:
            return cls._of_tokens(output, family)
        if output.ndim not in (2, 4) or output.shape[0] != PROBES:
            return None
        if output.ndim == 2:
            return cls(kind="vector")
        _, first, second, third = output.shape
        if second == third and not (first == second and family.channels_last):
            return cls(kind="channels first")
        return cls(kind="channels last") if first == second else None

    @classmethod
    def _of_tokens(cls, output: Tensor, family: LayerOutput) -> "Layout | None":
        batch_first = output.shape[0] == PROBES
        if not batch_first and output.shape[1] != PROBES:
            return None
        tokens = output.shape[1 if batch_first else 0]
        # Patch embeddings, and blocks before the class token joins, have patches alone.
        for prefix in dict.fromkeys((family.prefix_tokens, 0)):
            if tokens > prefix and math.isqrt(tokens - prefix) ** 2 == tokens - prefix:
                return cls(
                    kind="tokens",
                    batch_first=batch_first,
                    prefix_tokens=prefix,
                    class_token=family.class_token and prefix > 0,
                )
        return None

    def read(self, output: Tensor, size: tuple[int, int]) -> LayerFeatures:
        """The map (batch, channels, height, width) of an input of `size` (height, width)."""
        if self.kind == "vector":
            return LayerFeatures(output[:, :, None, None], None)
        if self.kind != "tokens":
            return LayerFeatures(
                output if self.kind == "channels first" else output.movedim(-1, 1), None
            )
        tokens = output if self.batch_first else output.transpose(0, 1)
        patches = tokens[:, self.prefix_tokens :].transpose(1, 2)
        height = round(math.sqrt(patches.shape[2] * size[0] / size[1]))
        assert patches.shape[2] % height == 0, (tuple(output.shape), size)
        return LayerFeatures(
            patches.unflatten(2, (height, -1)), tokens[:, 0] if self.class_token else None
        )


def first_tensor(output: Any) -> Any:
    """The tensor that a module's output, perhaps nested in tuples or lists, begins with."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output
