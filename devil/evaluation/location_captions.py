"""What is said at chosen locations of a layer's map, for many pictures in one batch."""

from collections.abc import Sequence

import torch

from devil.config import DecodingConfig
from devil.decoding import greedy_captions
from devil.model import DeViL
from devil.picture_features import Features, location_features
from devil.types import ALL_LAYERS, LayerShape


def layer_grid(model: DeViL, layer: str) -> tuple[int, int]:
    """Rows and columns of a layer's locations; all layers at once meet on the last one's."""
    shape = LayerShape(*model.shapes[model.layers[-1] if layer == ALL_LAYERS else layer])
    return shape.height, shape.width


def central_location(grid: tuple[int, int]) -> int:
    """The location (row-major) nearest the centre; of equals the upper left one."""
    rows, columns = grid
    return (rows - 1) // 2 * columns + (columns - 1) // 2


def drawn_locations(grid: tuple[int, int], count: int, seed: int) -> list[int]:
    """`count` different locations (row-major, rising) drawn at random; 0, or too many: all."""
    every = grid[0] * grid[1]
    if not 0 < count < every:
        return list(range(every))
    order = torch.randperm(every, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())


def location_captions(
    model: DeViL,
    features: Features,
    layer: str,
    locations: Sequence[int],
    decoding: DecodingConfig | None = None,
) -> list[list[str]]:
    """Captions of some locations of each picture, the same ones in all.

    Args:
        model: the model.
        features: of one or more pictures, from `devil.picture_features.image_features`.
        layer: a layer's name, or `all`.
        locations: row-major numbers in the layer's grid.
        decoding: of the captions.

    Returns:
        Per picture one caption for each location, in their order.
    """
    vectors, grid = location_features(model, features, layer)
    count, chosen = grid[0] * grid[1], torch.as_tensor(locations)
    picked = {
        slot: rows.unflatten(0, (-1, count))[:, chosen].flatten(0, 1)
        for slot, rows in vectors.items()
    }
    said = greedy_captions(model.language_model, model.prefix(picked), decoding)
    texts = [caption.text for caption in said]
    step = len(locations)
    return [texts[start : start + step] for start in range(0, len(texts), step)]


def mean_caption(model: DeViL, layer: str, decoding: DecodingConfig | None = None) -> str:
    """What the model says of the training set's mean feature, as one location."""
    layers = model.layers if layer == ALL_LAYERS else (layer,)
    prefix = model.prefix(model.mean_features(layers))
    return greedy_captions(model.language_model, prefix, decoding)[0].text
