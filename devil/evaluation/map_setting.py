"""How a map for a name is made; making it is left to `query_maps`."""

import math
from dataclasses import dataclass
from typing import Literal

from devil.errors import ConfigError

Contrast = Literal["none", "names", "pmi"]


@dataclass(frozen=True, kw_only=True)
class MapSetting:
    """How a map for a name is made.

    Calibration by `pmi` or `mean` is no choice here: it takes the same value off all locations of a
    map, or divides them by it, and leaves their order as it is.
    """

    layers: tuple[str, ...]
    """One layer, or `all` (all at once), or several, whose maps are standardised (mean 0,
    deviation 1), brought to the finest of their grids bilinearly, and averaged."""
    prompt: str = ""
    """Text that names are conditioned on."""
    smoothing: int = 1
    """Odd kernel of the average pooling before a location is read; 1 is none."""
    contrast: Contrast = "none"
    """Against the other names: `names`: minus the log of their mean probability; `pmi`: the same
    after every name's score for the mean feature is taken off."""
    synonyms: bool = False
    """Ask for any of a name's words ("person", "man", "girl", ...): the log of the sum of their
    probabilities."""
    neighbours: float = 0.0
    """Weight of each location's neighbours in the map (`blend_neighbours`); 0 is none."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("a map setting has no layers; name one, or all.")
        if self.contrast not in ("none", "names", "pmi"):
            raise ConfigError(f"contrast is {self.contrast!r}; allowed: none, names, pmi.")
        if self.smoothing < 1 or self.smoothing % 2 == 0:
            raise ConfigError(f"smoothing is {self.smoothing}; allowed: odd numbers from 1.")
        if not 0 <= self.neighbours < math.inf:
            raise ConfigError(f"neighbours is {self.neighbours}; give a weight of at least 0.")

    @property
    def name(self) -> str:
        """What differs from the defaults, for tables: `blocks.8, "a photo of a", contrast pmi`."""
        parts = ["+".join(self.layers)]
        parts += [f'"{self.prompt}"'] if self.prompt else []
        parts += ["synonyms"] if self.synonyms else []
        parts += [f"smoothing {self.smoothing}"] if self.smoothing > 1 else []
        parts += [f"contrast {self.contrast}"] if self.contrast != "none" else []
        parts += [f"neighbours {self.neighbours:g}"] if self.neighbours else []
        return ", ".join(parts)
