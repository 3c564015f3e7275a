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
