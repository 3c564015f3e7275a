"""Routes that explain pictures: `POST /v1/explain`, `/v1/caption` and `/v1/saliency`.

One picture is answered with its explanation, exactly as `Explanation.to_json` writes it; several
with NDJSON, a line for each as soon as it is done. One that cannot be explained is a line with a
problem, and no problem of the others.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from serve import metrics
from serve.body import CAPTION, EXPLAIN, JSON, SALIENCY, Body, Form, read_body
from serve.kept import Kept
from serve.models import chosen_model
from serve.openapi import request_body
from serve.problems import ProblemError, internal_error, problem_of, problem_responses
from serve.schemas import ExplanationDocument, Options, Refusal
from serve.settings import RETRY_AFTER_SECONDS, Settings

NDJSON = "application/x-ndjson"
PICTURES_AT_ONCE = 8
"""Pictures of one request that are with the explainer at once."""

Ask = Callable[[str, bytes, Options, str, float], Awaitable[bytes | Refusal]]
"""Model, picture, what is asked, for whom, and within how many seconds → the explanation's JSON, or
why there is none."""

logger = logging.getLogger("ray.serve")


class Explaining:
    """Answers requests for explanations."""

    def __init__(self, settings: Settings, models: Mapping[str, str], kept: Kept, ask: Ask) -> None:
        """Take what is needed.

        Args:
            settings: limits.
            models: folders by id.
            kept: where explanations are kept.
            ask: asks an explainer.
        """
        self.settings, self.models, self.kept, self.ask = settings, models, kept, ask

    async def answer(self, request: Request, form: Form) -> Response:
        """Answer a request."""
        seconds = self.settings.timeout_seconds
        try:
            with metrics.timed("read"):
                async with asyncio.timeout(seconds):
                    body = await read_body(
                        request,
                        form,
                        max_bytes=self.settings.max_request_bytes,
                        max_pictures=self.settings.max_pictures,
                    )
        except TimeoutError:
            raise ProblemError(408, f"The body did not arrive within {seconds:g} s.") from None
        model, owner = chosen_model(self.models, body.options.model), secrets.token_hex(8)
        accepted = request.headers.get("accept", "")
        if body.several or NDJSON in accepted:
            return StreamingResponse(self._lines(model, body, owner), media_type=NDJSON)
        answer = await self.ask(model, body.images[0], body.options, owner, seconds)
        if isinstance(answer, Refusal):
            raise ProblemError(*answer)
        headers = {}
        if body.options.keep:
            if name := await asyncio.to_thread(self.kept.keep, answer, body.images[0]):
                headers["Content-Location"] = f"/v1/explanations/{name}"
        return Response(answer, media_type=JSON, headers=headers)

    async def _lines(self, model: str, body: Body, owner: str) -> AsyncIterator[bytes]:
        """A line for each picture, in the order in which they are done."""
        limit = asyncio.Semaphore(PICTURES_AT_ONCE)

        async def one(index: int) -> bytes:
            async with limit:
                return await self._line(model, body, owner, index)

        tasks = [asyncio.create_task(one(i)) for i in range(len(body.images))]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:  # the client may have gone
            for task in tasks:
                task.cancel()

    async def _line(self, model: str, body: Body, owner: str, index: int) -> bytes:
        picture = body.images[index]
        try:
            answer = await self._patiently(model, picture, body.options, owner)
        except ProblemError as problem:
            answer = problem.refusal
        except Exception:
            logger.exception("a picture of several failed")
            answer = internal_error()
        if isinstance(answer, Refusal):
            problem = problem_of(answer).model_dump(exclude_none=True)
            return json.dumps({"index": index, "problem": problem}).encode() + b"\n"
        start: dict[str, Any] = {"index": index}
        if body.options.keep:
            if name := await asyncio.to_thread(self.kept.keep, answer, picture):
                start["id"] = name
        return json.dumps(start).encode()[:-1] + b', "explanation": ' + answer + b"}\n"

    async def _patiently(
        self, model: str, picture: bytes, options: Options, owner: str
    ) -> bytes | Refusal:
        """Ask again where the explainer is busy: the request has been taken, and is answered."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.settings.timeout_seconds
        while True:
            try:
                answer = await self.ask(model, picture, options, owner, end - loop.time())
            except ProblemError as problem:
                answer = problem.refusal
            if not isinstance(answer, Refusal) or answer.status not in (429, 503):
                return answer
            seconds = answer.retry_after or RETRY_AFTER_SECONDS
            if loop.time() + seconds > end:
                return answer
            await asyncio.sleep(seconds)


def add_explaining_routes(api: FastAPI, explaining: Explaining) -> None:
    """The three routes and their documentation."""

    async def explain(request: Request) -> Response:
        return await explaining.answer(request, EXPLAIN)

    async def caption(request: Request) -> Response:
        return await explaining.answer(request, CAPTION)

    async def saliency(request: Request) -> Response:
        return await explaining.answer(request, SALIENCY)

    line = {"schema": {"$ref": "#/components/schemas/Line"}}
    headers = {
        "Content-Location": {
            "description": "Where the explanation is kept.",
            "schema": {"type": "string"},
        }
    }
    found = {200: {"content": {NDJSON: line}, "headers": headers}}
    for route, form, summary in (
        (explain, EXPLAIN, "Captions and maps of pictures"),
        (caption, CAPTION, "Captions of layers and locations alone"),
        (saliency, SALIENCY, "Maps for queries alone"),
    ):
        api.add_api_route(
            f"/v1/{route.__name__}",
            route,
            methods=["POST"],
            summary=summary,
            response_model=ExplanationDocument,
            responses={**found, **problem_responses(400, 408, 413, 415, 422, 429, 500, 503)},
            openapi_extra={"requestBody": request_body(form)},
        )
