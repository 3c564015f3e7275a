"""Two ways to send a request: one that awaits, and one that blocks.

What is asked in which order is written once, as coroutines over a `Transport`. Those of
`BlockingTransport` never suspend, so `finish` runs a coroutine over it from beginning to end by a
single step, without an event loop.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx

from devil.client.calls import Call

Result = TypeVar("Result")


class Answer(NamedTuple):
    """An answer whose body is still to come."""

    status: int
    headers: httpx.Headers
    pieces: AsyncIterator[bytes]


class Transport(Protocol):
    """Sends, waits and works."""

    def answer(self, call: Call) -> AbstractAsyncContextManager[Answer]:
        """Send a request; its answer while the block lasts."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that takes some time."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class AsyncTransport:
    """For an event loop, which goes on meanwhile."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    @asynccontextmanager
    async def answer(self, call: Call) -> AsyncGenerator[Answer, None]:
        """See `Transport`."""
        request = self.http.build_request(**call.arguments())
        response = await self.http.send(request, stream=True)
        try:
            yield Answer(response.status_code, response.headers, response.aiter_bytes())
        finally:
            await response.aclose()

    async def sleep(self, seconds: float) -> None:
        """See `Transport`."""
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """See `Transport`."""
        return await asyncio.to_thread(function, *arguments)

    async def close(self) -> None:
        """See `Transport`."""
        await self.http.aclose()


class BlockingTransport:
    """For a plain thread, which waits."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    @asynccontextmanager
    async def answer(self, call: Call) -> AsyncGenerator[Answer, None]:
        """See `Transport`."""
        request = self.http.build_request(**call.arguments())
        response = self.http.send(request, stream=True)
        try:
            yield Answer(response.status_code, response.headers, _each(response.iter_bytes()))
        finally:
            response.close()

    async def sleep(self, seconds: float) -> None:
        """See `Transport`."""
        time.sleep(seconds)

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """See `Transport`."""
        return function(*arguments)

    async def close(self) -> None:
        """See `Transport`."""
        self.http.close()


async def _each(items: Iterator[bytes]) -> AsyncIterator[bytes]:
    for item in items:
        yield item


def finish(steps: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that never suspends."""
    try:
        steps.send(None)
    except StopIteration as end:
        return end.value
    steps.close()
    raise AssertionError("a step of the blocking transport was suspended")


def each_finished(items: AsyncGenerator[Result, None]) -> Iterator[Result]:
    """The items of an asynchronous generator that never suspends; ends it when the caller stops."""
    try:
        while True:
            try:
                item = finish(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        finish(items.aclose())
