"""Errors as problem documents (RFC 9457): raised anywhere, written here, described for OpenAPI."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from serve.schemas import Problem, Refusal
from serve.settings import RETRY_AFTER_SECONDS

MEDIA_TYPE = "application/problem+json"
RETRIED = (429, 503)
"""Statuses after which the same request can succeed later."""
SHOWN_ERRORS = 5
"""Of a request with more faults than this, the first ones are named."""
LONGEST_NAME = 60
"""Longer names of unknown fields are cut in messages."""

logger = logging.getLogger("ray.serve")


class ProblemError(Exception):
    """Ends a request with a problem document."""

    def __init__(
        self,
        status: int,
        detail: str,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, detail, field, retry_after)
        self.refusal = Refusal(status, detail, field, retry_after)


def problem_of(refusal: Refusal) -> Problem:
    """A refusal as a document."""
    return Problem(
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        detail=refusal.detail,
        field=refusal.field,
    )


def problem_response(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    """A refusal as an HTTP response."""
    headers = dict(headers or {})
    if refusal.status in RETRIED:
        headers["Retry-After"] = str(refusal.retry_after or RETRY_AFTER_SECONDS)
    body = problem_of(refusal).model_dump_json(exclude_none=True)
    return Response(body, refusal.status, headers, media_type=MEDIA_TYPE)


def invalid(error: ValidationError) -> ProblemError:
    """What a request's fields have wrong; never repeats their values."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    first = faults[0]
    if first["type"] == "json_invalid":
        return ProblemError(400, f"The body is not valid JSON: {first['msg']}.")
    lines = [_line(fault["type"], fault["loc"], fault["msg"]) for fault in faults[:SHOWN_ERRORS]]
    field = str(first["loc"][0])[:LONGEST_NAME] if first["loc"] else None
    return ProblemError(422, "; ".join(lines) + ".", field)


def _line(kind: str, location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part)[:LONGEST_NAME] for part in location) or "body"
    message = message.removeprefix("Value error, ")  # of our own validators
    if kind == "extra_forbidden":
        message = "no such field; see /openapi.json for those that exist"
    return f"{name}: {message[:1].lower()}{message[1:]}"


def add_problem_handlers(api: FastAPI) -> None:
    """Let every error of `api` leave as a problem document, and none with a stack trace."""

    @api.exception_handler(ProblemError)
    async def of_request(request: Request, error: ProblemError) -> Response:
        return problem_response(error.refusal)

    @api.exception_handler(HTTPException)
    async def of_routing(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}."
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(allowed_methods(api.routes, request))
        return problem_response(Refusal(error.status_code, detail), headers)

    @api.exception_handler(Exception)
    async def of_ours(request: Request, error: Exception) -> Response:
        # The template alone: who knows an explanation's path can fetch it.
        logger.error("%s %s failed", request.method, route_of(request.scope), exc_info=error)
        return problem_response(internal_error())


def route_of(scope: Scope) -> str:
    """The template of the route that a request found; none where there is none."""
    return getattr(scope.get("route"), "path", None) or "none"


def allowed_methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """What may be done at a request's address; Starlette names the first route's methods alone."""
    here = (r for r in routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in here for method in route.methods or ()})


def internal_error() -> Refusal:
    """For faults of ours; what happened stands in the server's log alone."""
    return Refusal(500, "The server failed at this request; its log has the reason.")


_EXAMPLES: dict[int, Refusal] = {
    400: Refusal(400, "The body is not valid JSON: expected value at line 1 column 1."),
    401: Refusal(401, "This service asks for a key; send `Authorization: Bearer KEY`."),
    403: Refusal(403, "Origin: a page of another site may not ask; ask from a program instead."),
    404: Refusal(404, "no explanation is kept under this id; ask for it again.", "id"),
    408: Refusal(408, "The body did not arrive within 120 s."),
    409: Refusal(409, "The audit is running; only stopped or failed ones go on."),
    413: Refusal(413, "The body is longer than 20,000,000 bytes; send a smaller picture."),
    415: Refusal(415, "Content-Type is 'text/plain'; send multipart/form-data or JSON."),
    416: Refusal(416, "Range is 'bytes=9000-'; the file has 1,234 bytes, counted from 0."),
    422: Refusal(
        422, "the model was not trained for ['layer9']; its layers: layer4, all.", "layers"
    ),
    429: Refusal(429, "Too many requests are waiting; try again later."),
    500: internal_error(),
    503: Refusal(503, "The model is not ready to answer; try again later."),
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of the problems that a route can answer with."""
    return {status: _description(_EXAMPLES[status]) for status in statuses}


def _description(refusal: Refusal) -> dict[str, Any]:
    title = HTTPStatus(refusal.status).phrase
    example = problem_of(refusal).model_dump(exclude_none=True)
    schema = {"$ref": "#/components/schemas/Problem"}
    description: dict[str, Any] = {
        "description": title,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }
    if refusal.status in RETRIED:
        header = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        description["headers"] = {"Retry-After": header}
    return description
