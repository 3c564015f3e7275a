"""A file of the service's state as an answer, whose errors are problem documents.

Starlette's own answers ranges that it cannot send in plain text, and fails where the file went
after it was found: an explanation makes room for others, an audit is deleted.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from serve.problems import ProblemError, problem_response
from serve.schemas import Refusal

LONGEST_RANGE = 100
"""Longer ranges are cut in messages."""


class StateFile(FileResponse):
    """A file, or a part of it."""

    def __init__(self, path: Path, missing: ProblemError, **given: Any) -> None:
        """Look at nothing yet.

        Args:
            path: a file that may go at any moment.
            missing: raised if it is gone.
            given: as for `FileResponse`.
        """
        super().__init__(path, **given)
        self.missing = missing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; nothing leaves before it is open."""
        head: Message | None = None

        async def late(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
            elif head is None:
                await send(message)
            elif head["status"] < 400:
                opened, head = head, None
                await send(opened)
                await send(message)

        try:
            self.stat_result = await asyncio.to_thread(os.stat, self.path)
            self.set_stat_headers(self.stat_result)
            await super().__call__(scope, receive, late)
        except FileNotFoundError:
            raise self.missing from None
        if head is not None:
            refused = _refusal(head["status"], Headers(scope=scope), self.stat_result.st_size)
            own = Headers(raw=head["headers"])
            kept = {name: value for name, value in own.items() if name == "content-range"}
            await problem_response(refused, kept)(scope, receive, send)


def _refusal(status: int, headers: Headers, size: int) -> Refusal:
    asked = f"Range is {headers.get('range', '')[:LONGEST_RANGE]!r}"
    if status == 416:
        return Refusal(416, f"{asked}; the file has {size:,} bytes, counted from 0.")
    return Refusal(status, f"{asked}; send bytes=FIRST-LAST, or no Range for the whole file.")
