"""What FastAPI cannot know of the routes for audits: two kinds of body, files, and examples."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Response

from serve.audit_body import ARCHIVE, LISTS
from serve.audit_schemas import (
    EXAMPLE,
    AuditDocument,
    AuditFields,
    AuditList,
    AuditRequest,
    ListQuery,
)
from serve.body import JSON, MULTIPART
from serve.problems import problem_responses

PREFIX = "/v1/audits"
PARQUET = "application/vnd.apache.parquet"
PROBLEMS: dict[tuple[str, str], tuple[int, ...]] = {
    ("POST", ""): (400, 403, 408, 413, 415, 422, 429, 500, 503),
    ("GET", ""): (422, 500, 503),
    ("GET", "/{audit}"): (404, 500, 503),
    ("POST", "/{audit}/resume"): (404, 409, 429, 500, 503),
    ("DELETE", "/{audit}"): (404, 409, 500, 503),
    ("GET", "/{audit}/files/{name:path}"): (400, 404, 416, 500),
}
"""Statuses of the problems that each route answers with."""
ANSWERS: dict[tuple[str, str], tuple[Any, dict[str, Any] | None]] = {
    ("POST", ""): (AuditDocument, EXAMPLE | {"state": "queued"}),
    ("GET", ""): (AuditList, {"audits": [EXAMPLE | {"results": None}]}),
    ("GET", "/{audit}"): (AuditDocument, EXAMPLE),
    ("POST", "/{audit}/resume"): (AuditDocument, EXAMPLE | {"state": "queued"}),
}
"""Models and examples of the answers in JSON."""
FILES = {
    "description": "The report, or a table in Parquet.",
    "content": {
        "text/html": {"schema": {"type": "string"}},
        PARQUET: {"schema": {"type": "string", "format": "binary"}},
    },
}
LOCATION = {"Location": {"description": "Of the audit.", "schema": {"type": "string"}}}
LIST_PARAMETERS = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field.description,
            "schema": ListQuery.model_json_schema()["properties"][name],
        }
        for name, field in ListQuery.model_fields.items()
    ]
}
_EXAMPLE = {"images": "/data/photos/may", "queries": ["dog"], "layers": ["layer4", "all"]}


def request_body() -> dict[str, Any]:
    """The body of `POST /v1/audits`, as multipart and as JSON."""
    form = AuditFields.model_json_schema()
    archive = {
        "type": "string",
        "format": "binary",
        "contentMediaType": "application/octet-stream",
        "description": "A zip, a tar, or a tar in gzip, of pictures or of webdataset samples.",
    }
    form["properties"] = {ARCHIVE: archive} | form["properties"]
    form["required"] = [ARCHIVE]
    repeated = {name: {"style": "form", "explode": True} for name in LISTS}
    return {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": AuditRequest.model_json_schema(), "example": _EXAMPLE},
                MULTIPART: {"schema": form, "encoding": repeated},
            },
        }
    }


def described(
    api: FastAPI,
    method: str,
    path: str,
    handler: Callable[..., Any],
    summary: str,
    status: int,
    *,
    openapi: dict[str, Any] | None = None,
) -> None:
    """Add a route below `/v1/audits` with all that it can answer."""
    model, example = ANSWERS.get((method, path), (None, None))
    answer: dict[str, Any] = {}
    if example is not None:
        answer["content"] = {JSON: {"example": example}}
    if status == 202:
        answer["headers"] = LOCATION
    if path.endswith("{name:path}"):
        answer = FILES
    api.add_api_route(
        PREFIX + path,
        handler,
        methods=[method],
        summary=summary,
        status_code=status,
        response_model=model,
        response_class=Response if model is None else api.router.default_response_class,
        responses={status: answer, **problem_responses(*PROBLEMS[method, path])},
        openapi_extra=openapi,
        tags=["audits"],
    )
