"""DeViL's maps for names in pictures, under several settings at once.

What the settings share is done once: the prefixes for each layer and smoothing, and the names'
scores for each prompt beside these. The backbone's pass is left to the caller, who may ask of the
same features again.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from devil.errors import QueryError
from devil.evaluation.map_setting import MapSetting
from devil.evaluation.pointing import blend_neighbours
from devil.model import DeViL
from devil.picture_features import Features, location_features
from devil.pooling import resize_map
from devil.saliency import Query, calibrate, query_log_probabilities, tokenize_queries
from devil.types import ALL_LAYERS

FLAT = 1e-6
"""A map whose deviation is below this, in nats, is not blown up to deviation 1."""


class _Part(NamedTuple):
    """What decides the map of one layer."""

    layer: str
    smoothing: int
    prompt: str
    synonyms: bool
    contrast: str


PictureMaps = dict[str, np.ndarray]
"""Name → (rows, columns) float64."""


@torch.inference_mode()
def query_maps(
    model: DeViL,
    features: Features,
    asked: Sequence[Sequence[str]],
    settings: Sequence[MapSetting],
    *,
    names: Sequence[Sequence[str]] = (),
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> dict[MapSetting, list[PictureMaps]]:
    """Maps for names in pictures.

    Args:
        model: The model.
        features: The pictures' feature maps (`devil.picture_features.image_features`).
        asked: For each picture the names that it is asked about.
        settings: How maps are made.
        names: For each picture what `contrast` compares with; must hold all that is asked.
        synonyms: Other words for names, for settings that ask for these, too.

    Returns:
        For each setting and picture a map for each of its names, in nats, or without unit where
        layers are mixed.

    Raises:
        LayerError: the model was not trained for a layer.
        QueryError: a name cannot be asked, or is not among those to contrast with.
        ConfigError: the smoothing kernel is even.
    """
    for setting in settings:
        model.chosen_layers(setting.layers)
    if any(setting.contrast != "none" for setting in settings):
        _check_names(asked, names)
    parts = {
        _Part(layer, s.smoothing, s.prompt, s.synonyms, s.contrast): None
        for s in settings
        for layer in s.layers
    }
    maps = _part_maps(model, features, asked, list(parts), names, synonyms or {})
    return {
        setting: [
            {name: _mixed(maps, picture, name, setting) for name in wanted}
            for picture, wanted in enumerate(asked)
        ]
        for setting in settings
    }


def _check_names(asked: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> None:
    if len(names) != len(asked):
        raise QueryError(
            f"contrast needs names for each of {len(asked)} pictures; got {len(names)} lists."
        )
    for wanted, known in zip(asked, names, strict=True):
        unknown = sorted(set(wanted) - set(known))
        if unknown or len(known) < 2:
            raise QueryError(
                f"contrast needs at least two names, with all that is asked among them; got "
                f"{len(known)}, without {unknown or 'any'}."
            )


def _part_maps(
    model: DeViL,
    features: Features,
    asked: Sequence[Sequence[str]],
    parts: Sequence[_Part],
    names: Sequence[Sequence[str]],
    synonyms: Mapping[str, Sequence[str]],
) -> dict[_Part, list[PictureMaps]]:
    found: dict[_Part, list[PictureMaps]] = {}
    for layer, smoothing in dict.fromkeys((part.layer, part.smoothing) for part in parts):
        here = [part for part in parts if part[:2] == (layer, smoothing)]
        vectors, grid = location_features(model, features, layer, smoothing=smoothing)
        layers = model.layers if layer == ALL_LAYERS else (layer,)
        mean = model.mean_features(layers)
        # The mean feature is one more row.
        rows = {slot: torch.cat([values, mean[slot]]) for slot, values in vectors.items()}
        prefix = model.prefix(rows)
        for prompt, wide in dict.fromkeys((part.prompt, part.synonyms) for part in here):
            contrasts = [p.contrast for p in here if (p.prompt, p.synonyms) == (prompt, wide)]
            asking = _Asking(model, prompt, synonyms if wide else {})
            scored = asked if set(contrasts) == {"none"} else names
            scores = _scores(asking, prefix, asked, scored, contrasts)
            for contrast in contrasts:
                found[_Part(layer, smoothing, prompt, wide, contrast)] = [
                    {name: values.reshape(grid) for name, values in picture.items()}
                    for picture in scores[contrast]
                ]
    return found


class _Asking(NamedTuple):
    """How names are put to the language model."""

    model: DeViL
    prompt: str
    synonyms: Mapping[str, Sequence[str]]

    def __call__(
        self, prefix: Float[Tensor, "row prefix hidden"], names: Sequence[str]
    ) -> Float[Tensor, "row query"]:
        """log of the summed probabilities of each name's words."""
        words = {name: (name, *self.synonyms.get(name, ())) for name in names}
        texts = list(dict.fromkeys(text for found in words.values() for text in found))
        lm = self.model.language_model
        scores = query_log_probabilities(
            lm, prefix, tokenize_queries(lm, texts, prompt=self.prompt)
        )
        columns = [
            scores[:, [texts.index(text) for text in found]].logsumexp(dim=1)
            for found in words.values()
        ]
        return torch.stack(columns, dim=1)


def _scores(
    asking: _Asking,
    prefix: Float[Tensor, "row prefix hidden"],
    asked: Sequence[Sequence[str]],
    scored: Sequence[Sequence[str]],
    contrasts: Sequence[str],
) -> dict[str, list[PictureMaps]]:
    """Scores of what is asked, contrasted with all that is scored in the same picture.

    Pictures with the same names to be scored are scored together.
    """
    found: dict[str, list[PictureMaps]] = {c: [{} for _ in asked] for c in contrasts}
    groups: dict[tuple[str, ...], list[int]] = {}
    for picture, names in enumerate(scored):
        if asked[picture]:
            groups.setdefault(tuple(names), []).append(picture)
    for names, pictures in groups.items():
        rows = prefix[:-1].unflatten(0, (len(asked), -1))[pictures].flatten(0, 1)
        # Only `pmi` asks for the mean feature's scores.
        baseline = prefix[-1:] if "pmi" in contrasts else prefix[:0]
        scores = asking(torch.cat([rows, baseline]), names)
        for contrast in contrasts:
            values = _contrasted(scores[: len(rows)], scores[len(rows) :], contrast)
            by_picture = values.double().cpu().numpy().reshape(len(pictures), -1, len(names))
            for picture, columns in zip(pictures, by_picture, strict=True):
                found[contrast][picture] = {
                    name: columns[:, names.index(name)] for name in asked[picture]
                }
    return found


def _contrasted(
    scores: Float[Tensor, "row query"], baseline: Float[Tensor, "baseline query"], contrast: str
) -> Float[Tensor, "row query"]:
    if contrast == "none":
        return scores
    # Only `mean` asks how many tokens a query has.
    queries = [Query("", (), ())] * scores.shape[1]
    if contrast == "pmi":
        scores = calibrate(scores, queries, "pmi", lambda: baseline)
    return calibrate(scores, queries, "contrast", lambda: baseline)


def _mixed(
    maps: dict[_Part, list[PictureMaps]], picture: int, name: str, setting: MapSetting
) -> np.ndarray:
    found = [
        maps[_Part(layer, setting.smoothing, setting.prompt, setting.synonyms, setting.contrast)][
            picture
        ][name]
        for layer in setting.layers
    ]
    values = found[0] if len(found) == 1 else mix(found)
    return blend_neighbours(values, setting.neighbours) if setting.neighbours else values


def mix(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of standardised maps on the finest of their grids; a flat map counts as 0."""
    rows, columns = (max(m.shape[axis] for m in maps) for axis in (0, 1))
    total = np.zeros((rows, columns))
    for values in maps:
        deviation = float(values.std())
        standard = (
            (values - values.mean()) / deviation if deviation > FLAT else np.zeros(values.shape)
        )
        total += resize_map(torch.from_numpy(standard)[None, None], (rows, columns))[0, 0].numpy()
    return total / len(maps)
