"""The body of `POST /v1/audits` → what is asked, and the uploaded archive.

JSON is short. An archive goes to a temporary file (of `TMPDIR`) while it arrives, and is unpacked
by `archives`.
"""

from collections.abc import AsyncGenerator
from typing import IO, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from serve.audit_schemas import AuditFields, AuditRequest
from serve.body import JSON, MULTIPART, bounded, content_type, form_fields, parsed_form
from serve.problems import ProblemError, invalid

ARCHIVE = "archive"
LISTS = ("layers", "queries")
"""Form fields that may be given several times."""
MAX_JSON_BYTES = 1_000_000


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
    kind = content_type(request)
    try:
        if kind == JSON:
            chunks = bounded(request, MAX_JSON_BYTES)
            body = b"".join([chunk async for chunk in chunks])
            # Strict: "no" is not False, and 3.0 is no number of tokens.
            fields = AuditRequest.model_validate_json(body, strict=True)
            return AuditBody(fields, fields.images, None)
        if kind == MULTIPART:
            return await _multipart(request, bounded(request, max_archive_bytes))
    except ValidationError as error:
        raise invalid(error) from None
    except ClientDisconnect:
        raise ProblemError(400, "The connection closed before the whole body had come.") from None
    raise ProblemError(
        415, f"Content-Type is {kind[:100]!r}; send {JSON}, or {MULTIPART} with a file `{ARCHIVE}`."
    )


async def _multipart(request: Request, chunks: AsyncGenerator[bytes, None]) -> AuditBody:
    form = await parsed_form(request, chunks, max_files=1)
    try:
        archive = form.get(ARCHIVE)
        fields = AuditFields.model_validate(form_fields(form, ARCHIVE, lists=LISTS))
        if not isinstance(archive, UploadFile):
            raise ProblemError(
                422, f"{ARCHIVE}: give a zip or a tar as a file of this name.", ARCHIVE
            )
    except BaseException:
        await form.close()
        raise
    return AuditBody(fields, None, archive.file)
