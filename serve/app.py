"""The application: routes, limits, and how the ingress and the explainers are deployed.

`serve run serve.app:app` answers for the demo's model, `serve run serve.app:app model=FOLDER` for
another; `serve.settings` has the other settings. The ingress reads and checks requests and holds no
model (and so never loads torch); the explainers do the work.
"""

import asyncio
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.serve
import ray.serve.config
import ray.serve.exceptions
import ray.serve.handle
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from serve.access import add_access, logging_of
from serve.auditing import add_audit_routes
from serve.explaining import Explaining, add_explaining_routes
from serve.kept import Kept, add_kept_routes
from serve.models import describe, served_models
from serve.openapi import describe_api
from serve.pages import add_page
from serve.problems import ProblemError, add_problem_handlers, problem_responses
from serve.schemas import Health, ModelDescription, ModelList, Options, Refusal
from serve.settings import RETRY_AFTER_SECONDS, Settings

API_VERSION = "1.0"
HEALTH_CHECK_TIMEOUT_SECONDS = 60
DRAIN_SECONDS = 10.0
"""A copy that is to go has so long to finish, beyond what its longest request may take."""
NOT_READY = "The model is not ready to answer; try again later."
PROBE_SECONDS = 5.0
"""How long a health check waits for the explainer."""
HEALTH_SECONDS = 0.5
"""How long its answer holds: everyone may ask, and each time the model works."""
LOST = (
    ray.serve.exceptions.DeploymentUnavailableError,
    ray.serve.exceptions.ReplicaUnavailableError,
    ray.exceptions.RayActorError,
)
"""The explainer is gone; another is being started."""

logger = logging.getLogger("ray.serve")


@ray.serve.ingress()
class Ingress:
    """Reads requests, hands them to the explainers, and says no where it must."""

    def __init__(self, settings: Settings, explainer: ray.serve.handle.DeploymentHandle) -> None:
        self.settings = settings
        self.explainer = explainer
        self.models = served_models(settings.model)
        self.kept = Kept(settings.state, settings.keep_explanations)
        self._explaining = 0
        self._answered = float("-inf")
        self._health: asyncio.Task[Health] | None = None
        self._health_until = float("-inf")

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self)

    async def ask(
        self, model: str, image: bytes, options: Options, owner: str, seconds: float
    ) -> bytes | Refusal:
        """Have a picture explained within so many seconds; see `Explainer.explain`.

        Raises:
            ProblemError: 429 if the queue is full; 503 if the time is over, or the explainer gone.
        """
        self._explaining += 1
        try:
            handle = self.explainer.options(multiplexed_model_id=model)
            response = handle.explain.remote(model, image, options, owner)
            return await self._answer(response, seconds)
        finally:
            self._explaining -= 1

    async def list_models(self) -> ModelList:
        """Answer `GET /v1/models`."""
        return ModelList(models=[await self._described(model) for model in self.models])

    async def describe_model(self, id: str) -> ModelDescription:
        """Answer `GET /v1/models/{id}`."""
        if id not in self.models:
            known = ", ".join(self.models)
            raise ProblemError(404, f"no model is called {id[:60]!r}; there are {known}.", "id")
        return await self._described(id)

    async def _described(self, model: str) -> ModelDescription:
        default = model == next(iter(self.models))
        return await asyncio.to_thread(describe, model, self.models[model], default=default)

    async def health(self) -> Health:
        """Answer `GET /healthz`; those who ask at about the same time share one answer."""
        if self._health is None or time.monotonic() > self._health_until:
            self._health = asyncio.create_task(self._look())
            self._health_until = float("inf")
            self._health.add_done_callback(self._looked)
        return await asyncio.shield(self._health)

    def _looked(self, task: "asyncio.Task[Health]") -> None:
        self._health_until = time.monotonic() + HEALTH_SECONDS
        if not task.cancelled():
            task.exception()  # known, also if nobody waits for it any more

    async def _look(self) -> Health:
        """Ask the explainer.

        One that does not answer in time, but did so within the time that the longest request may
        take, is busy.
        """
        try:
            await self._answer(self.explainer.probe.remote(), PROBE_SECONDS)
        except ProblemError as problem:
            silent = time.monotonic() - self._answered
            recent = silent < self.settings.timeout_seconds + PROBE_SECONDS
            if problem.refusal.status == 429 or (self._explaining and recent):
                return Health(status="busy")
            raise ProblemError(503, NOT_READY) from None
        return Health(status="ready")

    async def _answer(self, response: Any, seconds: float) -> Any:
        """Wait for an explainer's answer.

        Raises:
            ProblemError: 429 if the queue is full; 503 if the time is over, or the explainer gone.
        """
        try:
            async with asyncio.timeout(seconds):
                result = await response
        except TimeoutError:
            response.cancel()  # else it would wait on, and keep its place
            raise ProblemError(503, f"No answer within {seconds:g} s; try again later.") from None
        except ray.serve.exceptions.BackPressureError:
            raise ProblemError(429, "Too many requests are waiting; try again later.") from None
        except LOST as error:
            logger.warning("the explainer is gone: %s", error)
            self._answered = float("-inf")
            raise ProblemError(503, NOT_READY) from None
        self._answered = time.monotonic()
        return result


def build_api(ingress: Ingress) -> FastAPI:
    """The routes, their documentation, and their errors."""
    api = FastAPIOffline(  # `/docs` as FastAPI has it, its files from here and not from the web
        title="DeViL",
        version=API_VERSION,
        description="What each layer of a vision model holds at each location, in words.",
        redoc_url=None,
        static_url="/docs/files",
    )
    explaining = Explaining(ingress.settings, ingress.models, ingress.kept, ingress.ask)
    add_explaining_routes(api, explaining)
    add_kept_routes(api, ingress.kept)
    api.add_api_route(
        "/v1/models",
        ingress.list_models,
        summary="The models that answer, their layers and measured scores",
        response_model=ModelList,
        responses=problem_responses(500),
    )
    api.add_api_route(
        "/v1/models/{id:path}",
        ingress.describe_model,
        summary="One of them",
        response_model=ModelDescription,
        responses=problem_responses(404, 500),
    )
    api.add_api_route(
        "/healthz",
        ingress.health,
        summary="Whether pictures can be explained now",
        response_model=Health,
        responses=problem_responses(500, 503),
    )
    add_audit_routes(api, ingress.settings)
    add_page(api)
    add_problem_handlers(api)
    describe_api(api)
    add_access(api, ingress.settings)
    return api


def app(settings: Settings) -> ray.serve.Application:
    """The application that `serve run` and a Serve config file start.

    Raises:
        ModelFolderError: a model folder does not exist.
    """
    settings = with_whole_paths(settings)
    # Here alone: the ingress imports this file, and must not load torch.
    from pipelines.pool import KEEP_MEMORY
    from serve.explainer import Explainer

    memory = {name: os.environ.get(name, value) for name, value in KEEP_MEMORY.items()}

    explainer = ray.serve.deployment(
        Explainer,
        name="Explainer",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_open,
        max_queued_requests=settings.max_open,
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": _gpus(settings),
            "runtime_env": {"env_vars": memory},
        },
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_SECONDS,
        graceful_shutdown_timeout_s=settings.timeout_seconds + DRAIN_SECONDS,
        logging_config=logging_of(settings),
    ).bind(settings)
    ingress = ray.serve.deployment(
        Ingress,
        name="Ingress",
        max_ongoing_requests=settings.max_open,
        max_queued_requests=settings.max_open,
        backpressure_config=ray.serve.config.BackpressureConfig(
            status_code=429, retry_after_s=RETRY_AFTER_SECONDS
        ),
        ray_actor_options={"num_cpus": 0},
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_SECONDS,
        graceful_shutdown_timeout_s=settings.timeout_seconds + DRAIN_SECONDS,
        logging_config=logging_of(settings),
    )
    return ingress.bind(settings, explainer)


def with_whole_paths(settings: Settings) -> Settings:
    """Settings that mean the same in the working folder of any process.

    Raises:
        ModelFolderError: a model folder does not exist.
    """
    paths = {
        "model": ",".join(f"{name}={at}" for name, at in served_models(settings.model).items()),
        # Links stay: a secret of Kubernetes is one, and leads elsewhere after each change.
        "keys": settings.keys and str(Path(settings.keys).absolute()),
        "state": str(Path(settings.state).resolve()),
    }
    return settings.model_copy(update=paths)


def _gpus(settings: Settings) -> float:
    """What each replica takes of the machine's GPUs: one, or a share where there are fewer."""
    if settings.device == "cpu":
        return 0
    if ray.is_initialized():
        count = int(ray.cluster_resources().get("GPU", 0))
    else:
        import torch

        count = torch.cuda.device_count()
    if settings.device == "cuda":
        count = max(count, 1)
    # Shares of different GPUs cannot be joined, so each GPU takes a whole number of replicas.
    return 1 / math.ceil(settings.replicas / count) if count else 0
