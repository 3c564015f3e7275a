"""Bodies that end early; whole ones are sent over HTTP in `test_app`."""

import asyncio
from typing import Any

import pytest
from fastapi import Request

from serve.body import EXPLAIN, read_body
from serve.problems import ProblemError


@pytest.mark.parametrize("kind", [b"application/json", b"multipart/form-data; boundary=b"])
def test_a_client_that_leaves_is_no_fault_of_ours(kind: bytes) -> None:
    messages = [
        {"type": "http.request", "body": b"--b\r\n", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    request = Request({"type": "http", "headers": [(b"content-type", kind)]}, receive)
    with pytest.raises(ProblemError) as caught:
        asyncio.run(read_body(request, EXPLAIN, max_bytes=1000, max_pictures=1))
    assert caught.value.refusal.status == 400
    assert "closed" in caught.value.refusal.detail


def test_a_name_of_half_a_character_is_refused() -> None:
    """UTF-7 can spell it; an answer that repeats it could not be written."""
    part = b'--b\r\nContent-Disposition: form-data; name="+2AA-"\r\n\r\nx\r\n'

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": 2 * part + b"--b--\r\n", "more_body": False}

    kind = b"multipart/form-data; charset=utf-7; boundary=b"
    request = Request({"type": "http", "headers": [(b"content-type", kind)]}, receive)
    with pytest.raises(ProblemError) as caught:
        asyncio.run(read_body(request, EXPLAIN, max_bytes=1000, max_pictures=1))
    assert caught.value.refusal.status == 400 and "no text" in caught.value.refusal.detail
