"""What FastAPI cannot know of the routes: two kinds of body, and the schema of problems."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.body import JSON, LISTS, MULTIPART, Form
from serve.schemas import CaptionRequest, ExplainRequest, Line, Problem, SaliencyRequest

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
_EXAMPLES: dict[str, dict[str, Any]] = {
    "ExplainRequest": {"layers": ["all"], "queries": ["a red circle"], "dense": False},
    "CaptionRequest": {"layers": ["all"], "points": [[0.5, 0.5]], "words": 3},
    "SaliencyRequest": {"layers": ["all"], "queries": ["a red circle"]},
}


def request_body(form: Form) -> dict[str, Any]:
    """The body of a route, as multipart and as JSON."""
    fields = form.options.model_json_schema(ref_template=_REFERENCES)
    properties = fields["properties"]
    for name in LISTS:
        if name in properties:
            properties[name] |= {"type": "array", "items": {"type": "string"}}
            properties[name].pop("anyOf", None)
            properties[name].pop("default", None)
            properties[name].pop("examples", None)
    fields["properties"] = {"image": _FILE} | properties
    fields["required"] = ["image", *fields.get("required", [])]
    repeated = {name: {"style": "form", "explode": True} for name in LISTS if name in properties}
    name = form.request.__name__
    return {
        "required": True,
        "content": {
            MULTIPART: {"schema": fields, "encoding": repeated},
            JSON: {
                "schema": {"$ref": f"#/components/schemas/{name}"},
                "example": {"image": _PIXEL, **_EXAMPLES[name]},
            },
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
            for model in (Problem, ExplainRequest, CaptionRequest, SaliencyRequest, Line):
                schema = model.model_json_schema(ref_template=_REFERENCES)
                schemas |= schema.pop("$defs", {})
                schemas[model.__name__] = schema
            api.openapi_schema = found
        return api.openapi_schema

    api.openapi = document
