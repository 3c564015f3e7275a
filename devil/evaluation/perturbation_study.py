"""DeViL's maps beside rivals and controls in insertion and deletion, on the same pictures.

Rivals: Grad-CAM at the layers asked for, and RISE. Controls: DeViL's first setting on the features
of another picture, asked the same words, and of a backbone with random weights; noise on the same
grid; a Gaussian in the middle. A map that does no better than these has said nothing about the
picture. (The mean feature has no map of its own: it is the same at every location, so its pixels
would go in a random order.)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from devil.errors import BackboneError, ConfigError
from devil.evaluation.class_maps import (
    centre_map,
    class_count,
    grad_cam,
    grad_cam_layer,
    imagenet_names,
    random_map,
)
from devil.evaluation.class_queries import ClassQuery, Wording, picture_words
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.perturbation import (
    CURVES,
    Curve,
    PerturbationConfig,
    class_probabilities,
    perturbation_curves,
)
from devil.evaluation.perturbation_scores import (
    CENTRE,
    RANDOM,
    SHUFFLED,
    UNTRAINED,
    PictureCurves,
)
from devil.evaluation.query_maps import PictureMaps, query_maps
from devil.evaluation.rise import RiseConfig, rise_maps
from devil.model import DeViL
from devil.picture_features import Features, image_features

logger = logging.getLogger(__name__)

DEVIL, GRAD_CAM, RISE = "DeViL ", "Grad-CAM ", "RISE"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is compared, and how finely."""

    settings: tuple[str, ...] = (
        "all/name/none/neighbours=1/a photo of a",
        "all/name/contrast/neighbours=1/a photo of a",
    )
    """DeViL's maps, each as `LAYERS/WORDING/CALIBRATION[/smoothing=3][/neighbours=1][/PROMPT]`;
    LAYERS is `all`, a layer, or several joined by `+`; WORDING is name, head or caption. The first
    is the one that rivals and controls are compared with. Prompt and neighbours are those whose
    maps lie best on objects (docs/RESULTS.md)."""
    grad_cam_layers: tuple[str, ...] = ()
    """Layers of Grad-CAM; empty: the model's last."""
    curves: tuple[str, ...] = tuple(curve.name for curve in CURVES)
    """`MEASURE/BASELINE` of deletion, insertion and mean, blur; the first two are published."""
    perturbation: PerturbationConfig = field(default_factory=PerturbationConfig)
    rise_masks: int = 500
    """Masks of RISE; 0 leaves it out."""
    seed: int = 0
    """Of the masks, the random maps, the pairs of pictures and the resampling."""

    def __post_init__(self) -> None:
        if not self.settings or len(set(self.settings)) < len(self.settings):
            raise ConfigError(f"settings are {self.settings}; give at least one, and each once.")
        known = [curve.name for curve in CURVES]
        if not self.curves or not set(self.curves) <= set(known):
            raise ConfigError(f"curves are {self.curves}; allowed: {', '.join(known)}.")
        if self.rise_masks < 0:
            raise ConfigError(f"rise_masks is {self.rise_masks}; allowed: at least 0.")
        _ = self.maps

    @property
    def maps(self) -> tuple[ClassQuery, ...]:
        """The settings, read."""
        return tuple(ClassQuery.parse(text) for text in self.settings)

    @property
    def measured(self) -> tuple[Curve, ...]:
        """The curves, read."""
        return tuple(curve for curve in CURVES if curve.name in self.curves)


class StudyPicture(NamedTuple):
    """A picture to be explained, and the one whose features serve as its control."""

    key: str
    image: Image.Image
    other: Image.Image


class PerturbationStudy:
    """Measures batches of pictures with one model."""

    def __init__(
        self,
        model: DeViL,
        config: StudyConfig,
        names: Sequence[str] | None = None,
        untrained: DeViL | None = None,
    ) -> None:
        """Check that everything asked for can be done.

        Args:
            model: with its backbone, which is the classifier.
            config: what is compared.
            names: plain names of the classifier's classes; default: ImageNet's.
            untrained: the control out of `load_random_control`.

        Raises:
            BackboneError: there is no backbone, or it has no classification head.
            LayerError: a layer does not exist.
            ConfigError: there is not one name for each class.
        """
        if model.backbone is None:
            raise BackboneError(
                "this model was loaded without its backbone; load it with load_backbone=True."
            )
        count = class_count(model.backbone)
        self.names = tuple(imagenet_names() if names is None else names)
        if len(self.names) != count:
            raise ConfigError(
                f"{model.backbone.name} tells {count} classes apart, but {len(self.names)} names "
                "are given; give the name of each class, in the head's order."
            )
        self.model, self.backbone, self.config = model, model.backbone, config
        self.untrained = untrained
        for query in config.maps:
            model.chosen_layers(query.setting.layers)
        self.grad_cam_layers = config.grad_cam_layers or model.layers[-1:]
        for layer in self.grad_cam_layers:
            grad_cam_layer(self.backbone, layer)

    def __call__(self, pictures: Sequence[StudyPicture]) -> list[PictureCurves]:
        """Curves of every method on each picture; needs no other picture than these."""
        images = self._inputs([picture.image for picture in pictures])
        size = self.config.perturbation.batch_size
        probabilities = class_probabilities(self.backbone.model_output, images, size)
        labels = probabilities.argmax(dim=1)
        maps, words = self._maps(pictures, images, probabilities)
        found = perturbation_curves(
            self.backbone.model_output,
            images,
            labels,
            maps,
            curves=self.config.measured,
            config=self.config.perturbation,
        )
        # Settings that rank locations alike are measured once.
        shared = {DEVIL + q.label: DEVIL + q.ranking.label for q in self.config.maps}
        return [
            PictureCurves(
                picture.key,
                int(labels[index]),
                words[index],
                {
                    curve: {
                        method: by_method[shared.get(method, method)][index].tolist()
                        for method in self.methods
                    }
                    for curve, by_method in found.items()
                },
            )
            for index, picture in enumerate(pictures)
        ]

    @property
    def methods(self) -> list[str]:
        """Names of all that is compared, DeViL's first."""
        return [
            *(DEVIL + query.label for query in self.config.maps),
            *(GRAD_CAM + layer for layer in self.grad_cam_layers),
            *([RISE] if self.config.rise_masks else []),
            SHUFFLED,
            *([UNTRAINED] if self.untrained is not None else []),
            RANDOM,
            CENTRE,
        ]

    def _inputs(self, images: Sequence[Image.Image]) -> Tensor:
        batch = torch.stack([self.backbone.transform(image) for image in images])
        return batch.to(self.model.device)

    def _maps(
        self, pictures: Sequence[StudyPicture], images: Tensor, probabilities: Tensor
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Every method's maps, those that rank alike once; and the first setting's queries."""
        labels = probabilities.argmax(dim=1)
        grid = self.model.shapes[self.model.layers[-1]][1:]
        maps, words = self._devil_maps(pictures, probabilities)
        for layer in self.grad_cam_layers:
            at = grad_cam_layer(self.backbone, layer)
            cam = grad_cam(self.backbone, images, labels.tolist(), at)
            maps[GRAD_CAM + layer] = torch.from_numpy(cam)
        if self.config.rise_masks:
            rise = RiseConfig(
                masks=self.config.rise_masks,
                batch_size=self.config.perturbation.batch_size,
                seed=self.config.seed,
            )
            maps[RISE] = rise_maps(self.backbone.model_output, images, labels, rise)
        noise = [random_map(grid, picture.key, self.config.seed) for picture in pictures]
        maps[RANDOM] = torch.stack([torch.from_numpy(values) for values in noise])
        maps[CENTRE] = torch.from_numpy(centre_map(grid)).expand(len(pictures), -1, -1)
        return {name: values.to(images.device).float() for name, values in maps.items()}, words

    def _devil_maps(
        self, pictures: Sequence[StudyPicture], probabilities: Tensor
    ) -> tuple[dict[str, Tensor], list[str]]:
        first, *_ = queries = self.config.maps
        own = image_features(self.model, [picture.image for picture in pictures])
        other = image_features(self.model, [picture.other for picture in pictures])
        maps: dict[str, Tensor] = {}
        words: dict[Wording, list[list[str]]] = {}
        wordings: dict[Wording, None] = {query.wording: None for query in queries}
        for wording in wordings:
            words[wording] = picture_words(self.model, own, probabilities, self.names, wording)
            _tell_of_empty(pictures, words[wording])
            here = [query.ranking for query in queries if query.wording == wording]
            found = word_maps(self.model, own, words[wording], [query.setting for query in here])
            maps |= {DEVIL + query.label: found[query.setting] for query in here}
        controls = {SHUFFLED: (self.model, other)}
        if self.untrained is not None:
            seen = image_features(self.untrained, [picture.image for picture in pictures])
            controls[UNTRAINED] = (self.untrained, seen)
        for name, (asked, features) in controls.items():
            found = word_maps(asked, features, words[first.wording], [first.setting])
            maps[name] = found[first.setting]
        return maps, [asked for asked, *_ in words[first.wording]]


def _tell_of_empty(pictures: Sequence[StudyPicture], words: Sequence[Sequence[str]]) -> None:
    empty = [p.key for p, texts in zip(pictures, words, strict=True) if not texts[0].strip()]
    if empty:
        logger.warning("the model's caption is empty, so the map is flat: %s", ", ".join(empty))


def word_maps(
    model: DeViL,
    features: Features,
    words: Sequence[Sequence[str]],
    settings: Sequence[MapSetting],
) -> dict[MapSetting, Float[Tensor, "batch rows columns"]]:
    """Maps for the first of each picture's words; flat where it is empty, and nothing is asked.

    Args:
        model: the model.
        features: the pictures' maps.
        words: for each picture, what is asked for and then what that is contrasted with.
        settings: how maps are made.

    Raises:
        QueryError: words have no tokens, or do not fit the context.
    """
    asked = [texts[:1] if texts[0].strip() else [] for texts in words]
    found = query_maps(model, features, asked, settings, names=words)
    return {setting: _stacked(pictures) for setting, pictures in found.items()}


def _stacked(pictures: Sequence[PictureMaps]) -> Float[Tensor, "batch rows columns"]:
    """Each picture's only map; zeros, on the same grid, for a picture without."""
    maps = [next(iter(by_name.values()), None) for by_name in pictures]
    grid = next((values.shape for values in maps if values is not None), (1, 1))
    return torch.stack(
        [torch.from_numpy(np.zeros(grid) if values is None else values) for values in maps]
    )
