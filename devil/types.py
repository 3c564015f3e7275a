"""The axis vocabulary of shape annotations, and the small result types that several files share.

Axes: ``batch layer channels height width location prefix token hidden vocab``. Annotations are
jaxtyping's (``Float[Tensor, "batch channels height width"]``) and are checked under pytest.
"""

from typing import NamedTuple

from torch import Tensor

ALL_LAYERS = "all"
"""The name under which all layers at once are asked for and reported."""


class LayerShape(NamedTuple):
    """Shape of one layer's feature map for the backbone's input size."""

    channels: int
    height: int
    width: int

    @property
    def locations(self) -> int:
        """Number of locations, height × width."""
        return self.height * self.width


class LayerFeatures(NamedTuple):
    """What one layer holds for a batch of images."""

    map: Tensor
    """(batch, channels, height, width)."""
    class_token: Tensor | None
    """(batch, channels), or None where the architecture has none."""
