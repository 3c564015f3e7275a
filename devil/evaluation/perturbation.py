"""Insertion and deletion: does a classifier's confidence follow a saliency map?

Petsiuk et al., "RISE" (BMVC 2018) §4.2, with the protocol of DeViL (arXiv 2309.01617) §4.3. Pixels
are sorted by saliency. *Deletion* replaces them, most salient first, by a baseline: the better the
map, the faster the class's probability falls, the smaller the area under the curve. *Insertion*
starts from the baseline and puts them back: the better the map, the larger the area. The published
pairs are deletion to the mean colour and insertion from a blur; since a score depends on what
stands in for "nothing there", either measure can be taken with either baseline.

An area means little alone: it follows the classifier, the baseline and the steps. Compare methods
on the same pictures. Anything that turns pictures into logits can be the classifier.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from devil.errors import ConfigError, DataError
from devil.pooling import resize_map

Classifier = Callable[[Tensor], Tensor]
"""Normalised pictures (batch, 3, height, width) → logits (batch, class)."""

Measure = Literal["deletion", "insertion"]
Baseline = Literal["mean", "blur"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0
"""In pixels of the model's input; §4.2 of RISE gives their purpose, its code these numbers."""


class Curve(NamedTuple):
    """Which curve: a measure and what stands in for removed pixels."""

    measure: Measure
    baseline: Baseline

    @property
    def name(self) -> str:
        """`MEASURE/BASELINE`, as options and results name it."""
        return "/".join(self)


PROTOCOL = (Curve("deletion", "mean"), Curve("insertion", "blur"))
"""The published pairs."""
CURVES = (*PROTOCOL, Curve("deletion", "blur"), Curve("insertion", "mean"))
"""Every measure with every baseline, the published pairs first."""


@dataclass(frozen=True, kw_only=True)
class PerturbationConfig:
    """How finely curves are taken."""

    steps: int = 28
    """Equal parts in which pixels are replaced; 28 parts of 224² pixels have 224 × 8 each."""
    batch_size: int = 16
    """Pictures in a forward pass; a few at a time are fastest on a processor."""
    seed: int = 0
    """Of the order among pixels of equal saliency."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: at least 1.")


def baseline_images(
    images: Float[Tensor, "batch 3 height width"], baseline: str
) -> Float[Tensor, "batch 3 height width"]:
    """What removed pixels are replaced by.

    Args:
        images: normalised pictures, as the classifier takes them.
        baseline: `mean`: the colour that normalisation subtracts, zero after it; `blur`: the
            picture itself under a Gaussian of 11 pixels, σ = 5, mirrored at its edges.

    Raises:
        ConfigError: the baseline is unknown, or pictures are too small for the blur.
    """
    if baseline == "mean":
        return torch.zeros_like(images)
    if baseline != "blur":
        raise ConfigError(f"baseline is {baseline!r}; allowed: {', '.join(BASELINES)}.")
    if min(images.shape[2:]) <= BLUR_KERNEL // 2:
        raise ConfigError(
            f"pictures of {tuple(images.shape[2:])} pixels are too small for a blur of "
            f"{BLUR_KERNEL} pixels; use baseline 'mean'."
        )
    return gaussian_blur(images, [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])


def pixel_ranks(
    saliency: Float[Tensor, "batch rows columns"], size: tuple[int, int], seed: int = 0
) -> Int[Tensor, "batch height width"]:
    """Place of each pixel in the order of falling saliency: 0 is replaced first.

    Maps are brought to the picture's pixels bilinearly. Pixels of equal saliency go in an order
    drawn once from the seed, the same for all pictures; so a constant map is a random one.

    Args:
        saliency: maps on any grid, in any unit.
        size: height and width of the classifier's input.
        seed: of the order among equals.

    Raises:
        DataError: a map holds NaN or infinity.
    """
    if not saliency.isfinite().all():
        raise DataError("a saliency map holds NaN or infinity, so its pixels have no order.")
    # In double precision, then rounded: equal values stay equal after interpolation.
    pixels = resize_map(saliency[:, None].double(), size).float().flatten(1)
    count = pixels.shape[1]
    generator = torch.Generator().manual_seed(seed)
    among_equals = torch.randperm(count, generator=generator).to(pixels.device)
    order = among_equals[pixels[:, among_equals].argsort(dim=1, descending=True, stable=True)]
    ranks = torch.empty_like(order)
    places = torch.arange(count, device=order.device).expand_as(order)
    ranks.scatter_(1, order, places)
    return ranks.unflatten(1, size)


def pixels_replaced(steps: int, pixels: int) -> list[int]:
    """Pixels replaced (deletion) or put back (insertion) at each of the steps + 1 points.

    Raises:
        ConfigError: there are more steps than pixels.
    """
    if steps > pixels:
        raise ConfigError(f"steps is {steps}, but pictures have only {pixels} pixels.")
    return [step * pixels // steps for step in range(steps + 1)]


def perturbed(
    images: Float[Tensor, "batch 3 height width"],
    baseline: Float[Tensor, "batch 3 height width"],
    touched: Bool[Tensor, "batch height width"],
    measure: Measure,
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures of one step: touched pixels are the baseline's (deletion) or the picture's."""
    if measure == "deletion":
        return torch.where(touched[:, None], baseline, images)
    return torch.where(touched[:, None], images, baseline)


@torch.inference_mode()
def class_probabilities(
    classify: Classifier, images: Float[Tensor, "batch 3 height width"], batch_size: int = 16
) -> Float[Tensor, "batch class"]:
    """Softmax of the classifier's logits."""
    parts = [classify(part).float().softmax(dim=1) for part in images.split(batch_size)]
    return torch.cat(parts)


@torch.inference_mode()
def perturbation_curves(
    classify: Classifier,
    images: Float[Tensor, "batch 3 height width"],
    classes: Int[Tensor, " batch"],
    maps: Mapping[str, Float[Tensor, "batch rows columns"]],
    *,
    curves: Sequence[Curve] = PROTOCOL,
    config: PerturbationConfig | None = None,
) -> dict[Curve, dict[str, Float[Tensor, "batch point"]]]:
    """Probability of each picture's class while its pixels are replaced in each map's order.

    All maps are measured on the same pictures with the same steps. The end points, the whole
    picture and the bare baseline, do not depend on the map and are computed once.

    Args:
        classify: the classifier; one picture's logits must not depend on the others.
        images: normalised pictures.
        classes: the class followed for each, usually the one predicted on the clean picture.
        maps: by method; grids may differ.
        curves: which measures with which baselines.
        config: steps, batch size, seed of ties.

    Returns:
        For each curve and method, one row a picture and steps + 1 points; see `curve_positions`.

    Raises:
        ConfigError: a baseline is unknown, or there are more steps than pixels.
        DataError: a map is not finite.
    """
    config = config or PerturbationConfig()
    size = (int(images.shape[2]), int(images.shape[3]))
    counts = pixels_replaced(config.steps, size[0] * size[1])
    found: dict[Curve, dict[str, Tensor]] = {curve: {} for curve in curves}
    baselines = {name: baseline_images(images, name) for name in {c.baseline for c in curves}}

    def follow(pictures: Tensor, followed: Tensor) -> Tensor:
        probabilities = class_probabilities(classify, pictures, config.batch_size)
        return probabilities.gather(1, followed[:, None])[:, 0]

    clean = follow(images, classes)
    bare = {name: follow(pictures, classes) for name, pictures in baselines.items()}
    for method, saliency in maps.items():
        ranks = pixel_ranks(saliency, size, config.seed)
        for curve in curves:
            ends = (clean, bare[curve.baseline])
            first, last = ends if curve.measure == "deletion" else ends[::-1]
            inner = [
                follow(
                    perturbed(
                        images[rows],
                        baselines[curve.baseline][rows],
                        ranks[rows] < thresholds[:, None, None].to(ranks.device),
                        curve.measure,
                    ),
                    classes[rows],
                )
                for rows, thresholds in _inner_points(len(images), counts, config.batch_size)
            ]
            middle = torch.cat([first.new_empty(0), *inner]).reshape(len(images), -1)
            found[curve][method] = torch.cat([first[:, None], middle, last[:, None]], dim=1)
    return found


def _inner_points(
    pictures: int, counts: Sequence[int], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (picture, pixels replaced) for all points but the first and the last."""
    inner = torch.tensor(counts[1:-1], dtype=torch.long)
    rows = torch.arange(pictures).repeat_interleave(len(inner))
    thresholds = inner.repeat(pictures)
    yield from zip(rows.split(batch_size), thresholds.split(batch_size), strict=True)


def curve_positions(steps: int, pixels: int) -> Float[Tensor, " point"]:
    """Share of the pixels that are replaced or put back at each point, from 0 to 1."""
    return torch.tensor(pixels_replaced(steps, pixels), dtype=torch.float64) / pixels


def area_under(
    curves: Float[Tensor, "batch point"], positions: Float[Tensor, " point"]
) -> Float[Tensor, " batch"]:
    """Area under each curve by the trapezoid rule; in [0, 1] for probabilities over [0, 1]."""
    return torch.trapezoid(curves.double(), positions.to(curves.device), dim=1)
