"""Both clients, blocking and not, asked the same."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

from PIL import Image
from scripted_server import Reply, document, small_explanation

from devil.client import AsyncClient, Client, RetryConfig
from devil.errors import DevilError

FAST = RetryConfig(first_wait_seconds=0.001, longest_wait_seconds=0.01, tries=4, total_seconds=60)
CUT = Reply(cut=-1)


def picture(width: int = 8, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, 6), colour)


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def explained(width: int = 8, **headers: str) -> Reply:
    return document(small_explanation((width, 6)).to_dict(), **headers)


def both(address: str, call: Callable[[Any], Any], **options: Any) -> tuple[Any, Any]:
    """What a call of the one and of the other client gives, or raises."""

    def outcome(error: BaseException | None, value: Any = None) -> Any:
        return error if isinstance(error, DevilError) else value

    async def awaited() -> Any:
        async with AsyncClient(address, retry=FAST, **options) as client:
            found = call(client)
            if hasattr(found, "__aiter__"):
                return [item async for item in found]
            return await found

    with Client(address, retry=FAST, **options) as client:
        try:
            found = call(client)
            blocking = found if not hasattr(found, "__next__") else list(found)
        except DevilError as error:
            blocking = error
    try:
        waiting = asyncio.run(awaited())
    except DevilError as error:
        waiting = error
    return blocking, waiting
