"""What FastAPI cannot know of the routes: two kinds of body, and the schema of problems."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.body import JSON, LISTS, MULTIPART
from serve.schemas import ExplainRequest, Options, Problem

_REFERENCES = "#/components/schemas/{model}"
_FILE = {
    "type": "string",
    "format": "binary",
    "contentMediaType": "application/octet-stream",
    "description": "A JPEG, PNG, WebP, ... file.",
}
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4NqoAAAAASUVO"
    "RK5CYII="
)
"""A red PNG of 8 × 8 pixels, so that the example can be sent as it is."""
_EXAMPLE = {"image": _PIXEL, "layers": ["all"], "queries": ["a red circle"], "dense": False}


def request_body() -> dict[str, Any]:
    """The body of `POST /v1/explain`, as multipart and as JSON."""
    form = Options.model_json_schema(ref_template=_REFERENCES)
    form["properties"] = {"image": _FILE} | form["properties"]
    form["required"] = ["image"]
    form["properties"]["layers"] |= {"type": "array", "items": {"type": "string"}}
    del form["properties"]["layers"]["anyOf"], form["properties"]["layers"]["default"]
    repeated = {name: {"style": "form", "explode": True} for name in LISTS}
    return {
        "required": True,
        "content": {
            MULTIPART: {"schema": form, "encoding": repeated},
            JSON: {"schema": {"$ref": "#/components/schemas/ExplainRequest"}, "example": _EXAMPLE},
        },
    }


def describe_api(api: FastAPI) -> None:
    """Let `api` serve an OpenAPI document with the schemas that only its responses refer to."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            found = get_openapi(
                title=api.title,
                version=api.version,
                description=api.description,
                routes=api.routes,
            )
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for model in (Problem, ExplainRequest):
                schemas[model.__name__] = model.model_json_schema(ref_template=_REFERENCES)
            api.openapi_schema = found
        return api.openapi_schema

    api.openapi = document
