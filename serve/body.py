"""The body of a request → the bytes of pictures' files, and options.

Multipart or JSON, with its length bounded while it is read. Pictures are decoded by the explainer.
How a body is bounded and taken apart is the same for audits (`serve.audit_body`).
"""

import base64
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from devil.data.sample import unicode_text
from serve.problems import ProblemError, invalid
from serve.schemas import (
    CaptionOptions,
    CaptionRequest,
    ExplainOptions,
    ExplainRequest,
    Options,
    SaliencyOptions,
    SaliencyRequest,
)

MULTIPART, JSON = "multipart/form-data", "application/json"
LISTS = ("layers", "queries", "points")
"""Form fields that may be given several times."""
MAX_FIELDS = 1500
"""More than all that the lists may hold."""
MAX_FIELD_BYTES = 16_384
"""Of one form field that is not a file."""


class Form(NamedTuple):
    """What a route takes: fields beside files, or all in JSON."""

    options: type[CaptionOptions] | type[SaliencyOptions]
    request: type[CaptionRequest] | type[ExplainRequest] | type[SaliencyRequest]


EXPLAIN = Form(ExplainOptions, ExplainRequest)
CAPTION = Form(CaptionOptions, CaptionRequest)
SALIENCY = Form(SaliencyOptions, SaliencyRequest)


class Body(NamedTuple):
    """A request: the pictures' files, and what is asked about them."""

    images: tuple[bytes, ...]
    options: Options
    several: bool
    """Whether a list was given, be it of one."""


async def read_body(request: Request, form: Form, *, max_bytes: int, max_pictures: int) -> Body:
    """Read a request for explanations.

    Raises:
        ProblemError: 400 malformed, 413 too long, 415 of another type, 422 wrong fields.
    """
    kind = content_type(request)
    chunks = bounded(request, max_bytes, advice="; send smaller pictures, or fewer")
    try:
        if kind == MULTIPART:
            return await _read_multipart(request, chunks, form, max_pictures)
        if kind == JSON:
            content = b"".join([chunk async for chunk in chunks])
            return _read_json(content, form, max_pictures)
    except ValidationError as error:
        raise invalid(error) from None
    except ClientDisconnect:
        raise ProblemError(400, "The connection closed before the whole body had come.") from None
    raise ProblemError(
        415, f"Content-Type is {kind[:100]!r}; send {MULTIPART} with a file `image`, or {JSON}."
    )


def content_type(request: Request) -> str:
    """The type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def bounded(
    request: Request, max_bytes: int, *, advice: str = ""
) -> AsyncGenerator[bytes, None]:
    """The chunks of a body, until there are more bytes than allowed.

    Raises:
        ProblemError: 413, before anything is read if the declared length is too large.
    """
    too_long = ProblemError(413, f"The body is longer than {max_bytes:,} bytes{advice}.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > max_bytes):
        raise too_long
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > max_bytes:
            raise too_long
        yield chunk


async def parsed_form(
    request: Request, chunks: AsyncGenerator[bytes, None], *, max_files: int
) -> FormData:
    """A multipart body; the caller closes it.

    Raises:
        ProblemError: 400, it is malformed.
    """
    parser = MultiPartParser(
        request.headers,
        chunks,
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ProblemError(400, f"The multipart body is malformed: {error.message}") from None
    except ValueError as error:  # the parser beneath has kinds of its own
        raise ProblemError(400, f"The multipart body is malformed: {error}") from None
    if any(unicode_text(name) != name for name in form.keys()):  # some charsets give such
        await form.close()
        raise ProblemError(400, "The multipart body is malformed: a field's name is no text.")
    return form


def form_fields(
    form: FormData, file: str, *, lists: Sequence[str], several_files: bool = False
) -> dict[str, Any]:
    """Values of a form by name; lists for the fields that are lists.

    Args:
        form: from `parsed_form`.
        file: the field of the file, which is left out.
        lists: fields that may be given several times.
        several_files: whether the file may be, too.

    Raises:
        ProblemError: 422, a field is given several times that may not be.
    """
    fields: dict[str, Any] = {}
    repeated = (*lists, file) if several_files else tuple(lists)
    for name in form.keys():
        values = form.getlist(name)
        if len(values) > 1 and name not in repeated:
            raise ProblemError(422, f"{name[:60]}: given {len(values)} times; give it once.", name)
        if name != file:
            fields[name] = tuple(values) if name in lists else values[0]
    return fields


async def _read_multipart(
    request: Request, chunks: AsyncGenerator[bytes, None], form: Form, max_pictures: int
) -> Body:
    given = await parsed_form(request, chunks, max_files=max_pictures)
    try:
        fields = form_fields(given, "image", lists=LISTS, several_files=True)
        options = form.options.model_validate(fields)
        files = [file for file in given.getlist("image") if isinstance(file, UploadFile)]
        if not files or len(files) < len(given.getlist("image")):
            raise ProblemError(422, "image: give pictures as files of this name.", "image")
        return Body(tuple([await file.read() for file in files]), options, len(files) > 1)
    finally:
        await given.close()


def _read_json(body: bytes, form: Form, max_pictures: int) -> Body:
    # Strict: "no" is not False, and 3.0 is no number of tokens.
    request = form.request.model_validate_json(body, strict=True)
    if (request.image is None) == (request.images is None):
        raise ProblemError(422, "image: give either `image`, or several as `images`.", "image")
    several = request.images is not None
    texts = request.images or (request.image or "",)
    if len(texts) > max_pictures:
        raise ProblemError(
            422, f"images: {len(texts)} pictures; at most {max_pictures} at once.", "images"
        )
    options = form.options.model_validate(request.model_dump(exclude={"image", "images"}))
    field = "images" if several else "image"
    return Body(tuple(_decoded(text, field) for text in texts), options, several)


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ProblemError(
            422, f"{field}: not base64; encode the file's bytes, without line breaks.", field
        ) from None
