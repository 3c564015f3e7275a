"""Pictures → explanations: captions of pooled layers and of locations, and maps for queries.

All rows of all pictures and layers go through the language model together. What a row is, and how
rows become an explanation, is in `draft`; reading them in `reading`.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Literal

from PIL import Image

from devil.config import DecodingConfig
from devil.draft import Draft, prepare
from devil.errors import QueryError
from devil.explanation import Explanation
from devil.images import open_image
from devil.model import DeViL
from devil.picture_features import image_features, location_features, of_picture, visible_slots
from devil.question import Question
from devil.reading import read_rows
from devil.saliency import Calibration, vocabulary_log_probabilities
from devil.vocabulary import Readout, VocabularyMaps, read_vocabulary


def explain_images(
    model: DeViL,
    images: Sequence[str | PathLike[str] | bytes | Image.Image],
    *,
    layers: Sequence[str] | str | None = None,
    queries: Sequence[str] | str = (),
    dense: bool | None = None,
    points: Sequence[tuple[float, float]] = (),
    words: int = 0,
    captions: bool = True,
    calibration: Calibration = "pmi",
    prompt: str = "",
    smoothing: int = 1,
    decoding: DecodingConfig | None = None,
    sources: Sequence[str | None] | None = None,
) -> list[Explanation]:
    """Explain several pictures at once; arguments and errors as `DeViL.explain`.

    Args:
        sources: a name for each picture, kept in its explanation; default: its path, if it has one.
    """
    question = Question(
        layers=(layers,)
        if isinstance(layers, str)
        else layers
        if layers is None
        else tuple(layers),
        queries=(queries,) if isinstance(queries, str) else tuple(queries),
        captions=captions,
        dense=dense,
        points=tuple((x, y) for x, y in points),
        words=words,
        calibration=calibration,
        prompt=prompt,
        smoothing=smoothing,
    )
    asked = prepare(model, question)
    if sources is None:
        sources = [None if isinstance(i, bytes | Image.Image) else str(i) for i in images]
    pictures = [open_image(image) for image in images]
    if not pictures:
        return []
    features = image_features(model, pictures)
    drafts = [
        Draft(model, of_picture(features, i), picture.size, asked)
        for i, picture in enumerate(pictures)
    ]
    rows = [part for draft in drafts for part in draft.take(draft.rows)]
    read_rows(model, rows, decoding or DecodingConfig())
    return [
        draft.explanation(picture, source=source)
        for draft, picture, source in zip(drafts, pictures, sources, strict=True)
    ]


def vocabulary_saliency(
    model: DeViL,
    images: Sequence[str | PathLike[str] | bytes | Image.Image],
    *,
    layers: Sequence[str] | str | None = None,
    top: int = 10,
    calibration: Literal["none", "pmi"] = "pmi",
    prompt: str = "",
    smoothing: int = 1,
    decoding: DecodingConfig | None = None,
) -> list[dict[str, VocabularyMaps]]:
    """The whole vocabulary at every location; arguments and errors as `DeViL.vocabulary_saliency`.

    Returns:
        For each picture the maps of each layer.
    """
    chosen = model.chosen_layers(layers)
    if calibration not in ("none", "pmi"):
        raise QueryError(f"calibration is {calibration!r}; allowed here: none, pmi.")
    if top < 1:
        raise QueryError(f"top is {top}; at least 1 word per location can be asked for.")
    decoding = decoding or DecodingConfig()
    pictures = [open_image(image) for image in images]
    if not pictures:
        return []
    lm = model.language_model
    features = image_features(model, pictures)
    found: list[dict[str, VocabularyMaps]] = [{} for _ in pictures]
    for layer in chosen:
        baseline = None
        if calibration == "pmi":
            mean = model.prefix(model.mean_features(visible_slots(model, layer)))
            baseline = vocabulary_log_probabilities(lm, mean, prompt=prompt)[0]
        vectors, grid = location_features(model, features, layer, smoothing=smoothing)
        prefix = model.prefix(vectors, memory_gb=decoding.memory_gb)
        readout = read_vocabulary(
            lm,
            prefix,
            top=top,
            prompt=prompt,
            baseline=baseline,
            batch_size=decoding.batch_size,
            memory_gb=decoding.memory_gb,
        )
        each = grid[0] * grid[1]
        for i, maps in enumerate(found):
            part = Readout(*(column[i * each : (i + 1) * each] for column in readout))
            maps[layer] = VocabularyMaps(layer, grid, part, lm, baseline)
    return found
