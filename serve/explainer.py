"""The explainer: the copy of the models that answers, picture by picture.

Pictures are decoded and refused here, so that a bad one fails alone; what is left goes to the desk
(`serve.desk`), where concurrent requests share batches. Models are loaded when they are asked for,
and the one that was not asked for the longest leaves (Ray Serve's multiplexing).
"""

import asyncio
import logging
import math
import os
import secrets
import time
from collections.abc import Awaitable, Callable

import ray.serve
import torch
from PIL import Image

from devil.errors import ConfigError, DevilError, ImageError, LayerError, QueryError
from devil.images import open_image
from devil.model import DeViL
from devil.question import Question
from serve import metrics
from serve.admission import BusyError
from serve.desk import Desk
from serve.models import public_name, served_models
from serve.problems import internal_error
from serve.reload import ServedModel
from serve.schemas import Options, Refusal
from serve.settings import Settings

FIELDS: dict[type[DevilError], str] = {
    ImageError: "image",
    LayerError: "layers",
    QueryError: "queries",
    ConfigError: "max_new_tokens",
}
"""Errors that a request can cause, and the field to blame; any other is a fault of ours."""
STUCK_TIMEOUTS = 5
"""A step that runs for so many time-outs has hung, and the copy is replaced."""

logger = logging.getLogger("ray.serve")

Answer = bytes | Refusal
"""An explanation's JSON, or why there is none."""


def refusal_of(error: Exception, model: DeViL | None = None) -> Refusal:
    """What a client is told about an error: the message of one that it caused, else nothing."""
    if isinstance(error, BusyError):
        seconds = max(1, math.ceil(error.seconds))
        detail = f"Others are waiting for the model; try again in {seconds} s."
        return Refusal(429, detail, retry_after=seconds)
    for kind, field in FIELDS.items():
        if isinstance(error, kind):
            detail = str(error)
            if model is not None:  # where it lies on this machine is nobody's business
                name = model.language_model.config.name
                detail = detail.replace(name, public_name(name))
            return Refusal(422, detail, field)
    logger.error("cannot explain a picture", exc_info=error)
    return internal_error()


def chosen_device(name: str) -> str:
    """The device to load to.

    Raises:
        ConfigError: a GPU was asked for, and there is none.
    """
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("device is 'cuda', but there is no GPU here; set device=cpu.")
    return "cuda" if found and name != "cpu" else "cpu"


def blank() -> Image.Image:
    """A picture that shows nothing."""
    return Image.new("RGB", (32, 32))


class Explainer:
    """A copy: loads models, and explains the pictures of concurrent requests together."""

    def __init__(self, settings: Settings) -> None:
        """Load nothing yet but the default model."""
        self.settings = settings
        torch.set_num_threads(
            settings.threads or max(1, (os.cpu_count() or 1) // settings.replicas)
        )
        self.device = chosen_device(settings.device)
        self.desk = Desk(
            turn_locations=settings.turn_locations, max_wait_seconds=settings.max_wait_seconds
        )
        folders = served_models(settings.model)

        async def load(model_id: str) -> ServedModel:
            place = folders[model_id]
            return await asyncio.to_thread(ServedModel, place, self.device, settings.reload_seconds)

        most = settings.max_models
        self._served: Callable[[str], Awaitable[ServedModel]] = ray.serve.multiplexed(  # type: ignore[assignment]
            load, max_num_models_per_replica=most
        )
        self._loading: dict[str, asyncio.Task[ServedModel]] = {}
        self._default = next(iter(folders))
        self._recent: ServedModel | None = None

    async def _model(self, model_id: str) -> DeViL:
        if (task := self._loading.get(model_id)) is None:
            task = asyncio.ensure_future(self._served(model_id))
            self._loading[model_id] = task
            task.add_done_callback(lambda _: self._loading.pop(model_id))
        # A request that is given up does not end the load, whose thread cannot be stopped: the
        # next request would load the same model beside it.
        self._recent = found = await asyncio.shield(task)
        return found.model

    async def explain(self, model_id: str, image: bytes, options: Options, owner: str) -> Answer:
        """Explain the picture in a file's bytes.

        Args:
            model_id: as `served_models` names it.
            image: a JPEG, PNG, ... file.
            options: what is asked.
            owner: pictures of equal owners share one share of the device.
        """
        model: DeViL | None = None
        try:
            model = await self._model(model_id)
            question, longest = options.question(), options.max_new_tokens
            explanation = await self.desk.explain(
                model, lambda: self._opened(image), question, owner=owner, max_new_tokens=longest
            )
            with metrics.timed("render"):
                return await asyncio.to_thread(lambda: explanation.to_json().encode())
        except Exception as error:
            return refusal_of(error, model)

    def _opened(self, image: bytes) -> Image.Image:
        with metrics.timed("decode"):
            return open_image(image, max_pixels=self.settings.max_pixels)

    async def probe(self) -> None:
        """Explain a blank picture with a model that is loaded, in a share of its own."""
        model = self._recent.model if self._recent else await self._model(self._default)
        question = Question(layers=model.layers[-1:], dense=False)
        try:
            await self.desk.explain(
                model, blank, question, owner=secrets.token_hex(8), max_new_tokens=1
            )
        except BusyError:
            pass  # with others' pictures, so it works

    async def check_health(self) -> None:
        """Called by Ray, which replaces the copy if this raises."""
        started, longest = self.desk.pace.started, STUCK_TIMEOUTS * self.settings.timeout_seconds
        if started is not None and time.monotonic() - started > longest:
            raise RuntimeError(f"a step has been running for more than {longest:.0f} s")
        if started is None:
            await self.probe()
