"""The body of a request → the bytes of a picture's file, and options.

Multipart or JSON, with its length bounded while it is read. Pictures are decoded by the explainer.
"""

import base64
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve.problems import ProblemError, invalid
from serve.schemas import ExplainRequest, Options

MULTIPART, JSON = "multipart/form-data", "application/json"
LISTS = ("layers", "queries")
"""Form fields that may be given several times."""
MAX_FIELDS = 400
MAX_FIELD_BYTES = 16_384
"""Of one form field that is not the picture."""


class Body(NamedTuple):
    """A request: the picture's file, and what is asked about it."""

    image: bytes
    options: Options


async def read_body(request: Request, max_bytes: int) -> Body:
    """Read a request for an explanation.

    Raises:
        ProblemError: 400 malformed, 413 too long, 415 of another type, 422 wrong fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    chunks = bounded(request, max_bytes)
    try:
        if kind == MULTIPART:
            return await _read_multipart(request, chunks)
        if kind == JSON:
            return _read_json(b"".join([chunk async for chunk in chunks]))
    except ValidationError as error:
        raise invalid(error) from None
    except ClientDisconnect:
        raise ProblemError(400, "The connection closed before the whole body had come.") from None
    raise ProblemError(
        415, f"Content-Type is {kind[:100]!r}; send {MULTIPART} with a file `image`, or {JSON}."
    )


async def bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a body, until there are more bytes than allowed.

    Raises:
        ProblemError: 413, before anything is read if the declared length is too large.
    """
    too_long = ProblemError(
        413, f"The body is longer than {max_bytes:,} bytes; send a smaller picture."
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > max_bytes):
        raise too_long
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise too_long
        yield chunk


async def _read_multipart(request: Request, chunks: AsyncGenerator[bytes, None]) -> Body:
    parser = MultiPartParser(
        request.headers,
        chunks,
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ProblemError(400, f"The multipart body is malformed: {error.message}") from None
    except ValueError as error:  # the parser beneath has kinds of its own
        raise ProblemError(400, f"The multipart body is malformed: {error}") from None
    try:
        options = Options.model_validate(_form_fields(form))
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise ProblemError(422, "image: give a picture as a file of this name.", "image")
        return Body(await image.read(), options)
    finally:
        await form.close()


def _form_fields(form: FormData) -> dict[str, Any]:
    """Values by name, the picture left out; lists for the fields that are lists."""
    fields: dict[str, Any] = {}
    for name in form.keys():
        values = form.getlist(name)
        if len(values) > 1 and name not in LISTS:
            raise ProblemError(422, f"{name[:60]}: given {len(values)} times; give it once.", name)
        if name != "image":
            fields[name] = tuple(values) if name in LISTS else values[0]
    return fields


def _read_json(body: bytes) -> Body:
    # Strict: "no" is not False, and 3.0 is no number of tokens.
    request = ExplainRequest.model_validate_json(body, strict=True)
    try:
        image = base64.b64decode(request.image, validate=True)
    except ValueError:
        raise ProblemError(
            422, "image: not base64; encode the file's bytes, without line breaks.", "image"
        ) from None
    return Body(image, request.options())
