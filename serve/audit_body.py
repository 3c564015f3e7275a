"""The body of `POST /v1/audits` → what is asked, and the uploaded archive.

JSON is short. An archive goes to a temporary file (of `TMPDIR`) while it arrives, and is unpacked
by `archives`.
"""

from collections.abc import AsyncGenerator
from typing import IO, Any, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve.audit_schemas import AuditFields, AuditRequest
from serve.problems import ProblemError, invalid

MULTIPART, JSON = "multipart/form-data", "application/json"
ARCHIVE = "archive"
LISTS = ("layers", "queries")
"""Form fields that may be given several times."""
MAX_JSON_BYTES = 1_000_000
MAX_FIELDS = 400
MAX_FIELD_BYTES = 16_384


class AuditBody(NamedTuple):
    """What is asked, and where the pictures are: an address, or an open archive."""

    fields: AuditFields
    images: str | None
    archive: IO[bytes] | None


async def read_audit_body(request: Request, max_archive_bytes: int) -> AuditBody:
    """Read a request for an audit. The caller closes the archive.

    Raises:
        ProblemError: 400 malformed, 413 too long, 415 of another type, 422 wrong fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == JSON:
            chunks = _bounded(request, MAX_JSON_BYTES)
            body = b"".join([chunk async for chunk in chunks])
            # Strict: "no" is not False, and 3.0 is no number of tokens.
            fields = AuditRequest.model_validate_json(body, strict=True)
            return AuditBody(fields, fields.images, None)
        if kind == MULTIPART:
            return await _multipart(request, _bounded(request, max_archive_bytes))
    except ValidationError as error:
        raise invalid(error) from None
    except ClientDisconnect:
        raise ProblemError(400, "The connection closed before the whole body had come.") from None
    raise ProblemError(
        415, f"Content-Type is {kind[:100]!r}; send {JSON}, or {MULTIPART} with a file `{ARCHIVE}`."
    )


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The chunks of a body, until there are more bytes than allowed."""
    too_long = ProblemError(413, f"The body is longer than {most:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > most):
        raise too_long
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise too_long
        yield chunk


async def _multipart(request: Request, chunks: AsyncGenerator[bytes, None]) -> AuditBody:
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
        archive = form.get(ARCHIVE)
        fields = AuditFields.model_validate(_values(form))
        if not isinstance(archive, UploadFile):
            raise ProblemError(
                422, f"{ARCHIVE}: give a zip or a tar as a file of this name.", ARCHIVE
            )
    except BaseException:
        await form.close()
        raise
    return AuditBody(fields, None, archive.file)


def _values(form: FormData) -> dict[str, Any]:
    """Values by name, the archive left out; lists for the fields that are lists."""
    values: dict[str, Any] = {}
    for name in form.keys():
        found = form.getlist(name)
        if len(found) > 1 and name not in LISTS:
            raise ProblemError(422, f"{name[:60]}: given {len(found)} times; give it once.", name)
        if name != ARCHIVE:
            values[name] = tuple(found) if name in LISTS else found[0]
    return values
