"""Feature maps → feature vectors: mean, dropout draws, masked mean, one location, smoothing.

Feature dropout is that of DeViL (arXiv 2309.01617) §3.2.
"""

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from devil.errors import ConfigError


def mean_pool(
    feature_map: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels"]:
    """Mean over all locations."""
    return feature_map.mean(dim=(2, 3))


def row_generator(seed: int, key: str) -> torch.Generator:
    """A generator that depends on the seed and a row's key alone, whatever the batch or worker."""
    digest = hashlib.blake2b(f"{seed}|{key}".encode("utf-8", "surrogatepass"), digest_size=8)
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big") >> 1)


def dropout_masks(
    draws: int, locations: int, p: float, generator: torch.Generator
) -> Bool[Tensor, "draws location"]:
    """Which locations each draw of feature dropout keeps: each with probability 1 − p.

    A draw that lost all its locations is drawn again, alone; a 1 × 1 map always keeps its one.
    """
    if locations == 1:
        return torch.ones(draws, 1, dtype=torch.bool)
    keep = torch.rand(draws, locations, generator=generator) >= p
    while not keep.any(dim=1).all():
        lost = ~keep.any(dim=1)
        keep[lost] = torch.rand(int(lost.sum()), locations, generator=generator) >= p
    return keep


def masked_mean(
    feature_map: Float[Tensor, "batch channels height width"],
    weights: Float[Tensor, "batch draws location"] | Bool[Tensor, "batch draws location"],
) -> Float[Tensor, "batch draws channels"]:
    """Weighted mean over locations, once for each of a row's weightings.

    Args:
        feature_map: the maps.
        weights: non-negative weights of the locations (row-major); each weighting needs a sum
            above 0.
    """
    weights = weights.to(feature_map.dtype)
    summed = weights @ feature_map.flatten(2).transpose(1, 2)
    return summed / weights.sum(dim=2, keepdim=True)


def location_vectors(
    feature_map: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch location channels"]:
    """One vector for each location, row-major."""
    return feature_map.flatten(2).transpose(1, 2)


def smooth(
    feature_map: Float[Tensor, "batch channels height width"], kernel: int
) -> Float[Tensor, "batch channels height width"]:
    """Average pooling with stride 1 and an odd kernel; padding does not count in the mean.

    Raises:
        ConfigError: the kernel is even or below 1.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"smoothing kernel is {kernel}; allowed: odd numbers from 1.")
    return F.avg_pool2d(feature_map, kernel, 1, kernel // 2, count_include_pad=False)


def resize_map(
    feature_map: Float[Tensor, "batch channels height width"], size: tuple[int, int]
) -> Float[Tensor, "batch channels rows columns"]:
    """Bring a map to another grid bilinearly (cell centres, no corner alignment)."""
    if tuple(feature_map.shape[2:]) == tuple(size):
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)
