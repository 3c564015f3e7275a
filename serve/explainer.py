"""The explainer: one loaded model that answers many requests at once.

`explain_batch` is a plain function: it puts items with equal options into one call of
`devil.describing.explain_images`, so that their locations share the device's batches. `Explainer`
is the replica around it: pictures are decoded and refused before they join a batch, so that a bad
one fails alone.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ray.serve
import torch
from PIL import Image

from devil.config import DecodingConfig
from devil.describing import explain_images
from devil.errors import ConfigError, DevilError, ImageError, LayerError, QueryError
from devil.images import open_image
from devil.model import DeViL
from serve.problems import internal_error
from serve.reload import ServedModel
from serve.schemas import LayerDescription, ModelDescription, Options, Refusal
from serve.settings import Settings

FIELDS: dict[type[DevilError], str] = {
    ImageError: "image",
    LayerError: "layers",
    QueryError: "queries",
    ConfigError: "max_new_tokens",
}
"""Errors that a request can cause, and the field to blame; any other is a fault of ours."""
STUCK_TIMEOUTS = 5
"""A batch that runs for so many time-outs has hung, and the replica is replaced."""

logger = logging.getLogger("ray.serve")


class Item(NamedTuple):
    """A decoded picture in the queue."""

    image: Image.Image
    options: Options


Answer = bytes | Refusal
"""An explanation's JSON, or why there is none."""


def explain_batch(model: DeViL, items: Sequence[Item]) -> list[Answer]:
    """Explain pictures, those with equal options together; answers in the items' order."""
    groups: dict[Options, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.options, []).append(index)
    answers: dict[int, Answer] = {}
    for indices in groups.values():
        found = _explain_group(model, [items[i] for i in indices])
        answers |= dict(zip(indices, found, strict=True))
    return [answers[i] for i in range(len(items))]


def _explain_group(model: DeViL, items: Sequence[Item]) -> list[Answer]:
    """Explain pictures with equal options; if they fail together, each is tried alone."""
    options = items[0].options
    try:
        explanations = explain_images(
            model,
            [item.image for item in items],
            layers=options.layers,
            queries=options.queries,
            dense=options.dense,
            calibration=options.calibration,
            prompt=options.prompt,
            smoothing=options.smoothing,
            decoding=DecodingConfig(max_new_tokens=options.max_new_tokens),
        )
        return [explanation.to_json().encode() for explanation in explanations]
    except Exception as error:
        if len(items) > 1:
            return [_explain_group(model, [item])[0] for item in items]
        refusal = refusal_of(error)
        path, name = model.language_model.config.name, language_model_name(model)
        return [refusal._replace(detail=refusal.detail.replace(path, name))]


def language_model_name(model: DeViL) -> str:
    """Hub id, or the last part of a path: where it lies on this machine is nobody's business."""
    name = model.language_model.config.name
    return Path(name).name if Path(name).is_dir() else name


def refusal_of(error: Exception) -> Refusal:
    """What a client is told about an error: the message of one that it caused, else nothing."""
    for kind, field in FIELDS.items():
        if isinstance(error, kind):
            return Refusal(422, str(error), field)
    logger.error("cannot explain a picture", exc_info=error)
    return internal_error()


def describe(model: DeViL) -> ModelDescription:
    """What clients may know of the model."""
    layers = [
        LayerDescription(name=name, channels=shape.channels, grid=(shape.height, shape.width))
        for name, shape in model.shapes.items()
    ]
    return ModelDescription(
        id=model.name,
        version=model.version,
        backbone=model.backbone_config.name,
        language_model=language_model_name(model),
        layers=layers,
        scores=model.summary.get("scores") or {},
    )


def chosen_device(name: str) -> str:
    """The device to load to.

    Raises:
        ConfigError: a GPU was asked for, and there is none.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("device is 'cuda', but there is no GPU here; set device=cpu.")
    return "cuda" if found and name != "cpu" else "cpu"


class Explainer:
    """A replica: loads the model, and explains the pictures of concurrent requests in batches."""

    def __init__(self, settings: Settings) -> None:
        """Load the model; one that cannot explain a blank picture is not ready."""
        self.settings = settings
        torch.set_num_threads(
            settings.threads or max(1, (os.cpu_count() or 1) // settings.replicas)
        )
        device = chosen_device(settings.device)
        self._served = ServedModel(settings.model, device, settings.reload_seconds)
        self._free = asyncio.Event()
        self._free.set()
        self._batch_started: float | None = None
        self._batched.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(  # type: ignore[attr-defined]
            settings.batch_wait_seconds
        )
        logger.info("%s %s is ready on %s", self.model.name, self.model.version, device)

    @property
    def model(self) -> DeViL:
        """The model that answers now; a batch keeps the one that it began with."""
        return self._served.model

    async def explain(self, image: bytes, options: Options) -> Answer:
        """Explain the picture in a file's bytes."""
        try:
            limit = self.settings.max_pixels
            decoded = await asyncio.to_thread(open_image, image, max_pixels=limit)
        except Exception as error:
            return refusal_of(error)
        # Ray closes a batch soon after its first item, even if it cannot start yet. So what comes
        # while one is running waits here, and makes one batch afterwards.
        await self._free.wait()
        return await self._batched(Item(decoded, options))

    @ray.serve.batch
    async def _batched(self, items: list[Item]) -> list[Answer]:
        self._free.clear()
        self._batch_started = time.monotonic()
        try:
            return await asyncio.to_thread(explain_batch, self.model, items)
        finally:
            self._batch_started = None
            self._free.set()

    async def describe(self) -> ModelDescription:
        """See `describe`."""
        return describe(self.model)

    async def check_health(self) -> None:
        """Called by Ray, which replaces the replica if this raises."""
        started, longest = self._batch_started, STUCK_TIMEOUTS * self.settings.timeout_seconds
        if started is not None and time.monotonic() - started > longest:
            raise RuntimeError(f"a batch has been running for more than {longest:.0f} s")
