"""The connection to one service: its address, the key, and requests that are tried again.

The key stands in a header and nowhere else: addresses that hold a password are refused, and an
answer that repeats the key is not repeated in an error.
"""

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import httpx

from devil import __version__
from devil.client.calls import Call, read_json
from devil.client.retries import Failed, RetryConfig, Tries, refused, unreachable
from devil.client.transports import Answer, Transport
from devil.errors import ConfigError
from devil.files import replacing
from devil.storage import storage

KEY_VARIABLE = "DEVIL_API_KEY"
CONNECT_SECONDS = 10.0
"""Longest wait for a connection, where the time-out is longer."""
PROBLEM_BYTES = 65_536
"""Read of an answer that is no success."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def http_arguments(address: str, key: str | None, timeout: float) -> dict[str, Any]:
    """What httpx's clients are made from.

    Raises:
        ConfigError: no such address, key or time-out can be used.
    """
    headers = {"User-Agent": f"devil/{__version__}"}
    key = key or os.environ.get(KEY_VARIABLE) or None
    if key is not None:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                "the API key holds blanks, line ends or letters that are not ASCII; give it as "
                f"it was issued, as `key` or in the environment as {KEY_VARIABLE}."
            )
        headers["Authorization"] = f"Bearer {key}"
    if not 0 < timeout < float("inf"):
        raise ConfigError(f"timeout is {timeout}; allowed: above 0 seconds.")
    limits = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
    return {"base_url": checked_address(address), "headers": headers, "timeout": limits}


def checked_address(address: str) -> str:
    """The address of a service.

    Raises:
        ConfigError: it is none, or holds a password.
    """
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"address is {address!r}, which is none ({error}).") from error
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "the address holds a password, a query or a fragment; give it without, and the API "
            f"key as `key` or in the environment as {KEY_VARIABLE}."
        )
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"address is {address!r}; give one such as http://localhost:8000.")
    return str(url)


class Connection:
    """Sends requests, and again where that can help."""

    def __init__(self, address: str, key: str | None, retry: RetryConfig, transport: Transport):
        self.address = checked_address(address)
        self.retry = retry
        self.transport = transport
        self._key = (key or os.environ.get(KEY_VARIABLE) or "").encode()

    @asynccontextmanager
    async def answered(self, call: Call) -> AsyncGenerator[Answer, None]:
        """One try: a successful answer, while the block lasts.

        Raises:
            Failed: there was none, or it broke off.
        """
        try:
            async with self.transport.answer(call) as answer:
                if not 200 <= answer.status < 300:
                    content = await beginning(answer)
                    if self._key:
                        content = content.replace(self._key, b"***")
                    raise refused(call, answer.status, answer.headers, content)
                yield answer
        except httpx.RequestError as error:
            raise unreachable(error, self.address) from error

    async def ask(self, call: Call, read: Callable[[Answer], Awaitable[Result]]) -> Result | None:
        """What `read` makes of the answer; None if the call removed what was gone already.

        Raises:
            ServiceError: the last try failed, too.
        """
        tries = Tries(self.retry)
        while True:
            try:
                async with self.answered(call) as answer:
                    return await read(answer)
            except Failed as failed:
                found = failed.error
                if tries.made and found.status == 404 and found.detail == call.gone:
                    return None
                wait = tries.wait_after(failed, call)
                told(failed, wait)
            await self.transport.sleep(wait)

    async def document(self, call: Call, read: Callable[[Any], Result]) -> Result:
        """What `read` makes of the JSON of the answer; raises `ServiceError`."""

        async def parsed(answer: Answer) -> Result:
            return read(read_json(await whole(answer)))

        found = await self.ask(call, parsed)
        assert found is not None
        return found

    async def download(self, call: Call, path: str | PathLike[str]) -> Path:
        """Write the answer to a file, which is there whole or not at all.

        Raises:
            ServiceError: the last try failed, too.
            StorageError: the file cannot be written.
        """

        async def write(answer: Answer) -> None:
            with storage(str(path)), replacing(path) as file:
                async for piece in answer.pieces:
                    await self.transport.work(file.write, piece)

        await self.ask(call, write)
        return Path(path)


def told(failed: Failed, wait: float) -> None:
    """Log that a request is sent again."""
    logger.info("%s Again in %.1f s.", failed.error, wait)


async def whole(answer: Answer) -> bytes:
    """All of an answer."""
    return b"".join([piece async for piece in answer.pieces])


async def beginning(answer: Answer) -> bytes:
    """As much of an answer as a problem document takes."""
    content = b""
    async for piece in answer.pieces:
        content += piece
        if len(content) >= PROBLEM_BYTES:
            break
    return content[:PROBLEM_BYTES]


async def lines(answer: Answer) -> AsyncIterator[Any]:
    """The JSON documents of an answer, one a line, as each comes."""
    left = b""
    async for piece in answer.pieces:
        *done, left = (left + piece).split(b"\n")
        for line in done:
            if line.strip():
                yield read_json(line)
    if left.strip():
        yield read_json(left)
