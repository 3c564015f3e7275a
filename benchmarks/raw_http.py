"""HTTP by hand over a socket, so that what no client library would send can be sent."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Literal

Manner = Literal["waits", "leaves", "resets"]
"""What a client does once it has sent all: read the answer, close, or break the connection."""
_GOING = asyncio.IncompleteReadError, ConnectionError, OSError
SHORT_SECONDS = 1.0
"""How long an answer to a request that is no whole one is waited for."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a client does on one connection."""

    pieces: tuple[bytes, ...]
    """Written one after the other."""
    pause: float = 0.0
    """Seconds between two pieces."""
    manner: Manner = "waits"
    """What it does then."""
    whole: bool = True
    """Whether an answer must come; else the server may wait for more."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """What came back."""

    data: bytes
    """All bytes, of the first answer and of others behind it."""
    hung: bool
    """Whether an answer had to come, and none did."""

    @property
    def status(self) -> int | None:
        """Of the last answer's status line that is not `100 Continue`; None: no answer."""
        head = self.data.split(b"HTTP/1.1 100 Continue\r\n\r\n")[-1]
        words = head.split(b" ", 2)
        return int(words[1]) if head.startswith(b"HTTP/") and len(words) > 1 else None

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer, by lower-case names."""
        head = self.data.split(b"HTTP/1.1 100 Continue\r\n\r\n")[-1].partition(b"\r\n\r\n")[0]
        lines = head.decode("latin-1").split("\r\n")[1:]
        return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}

    @property
    def body(self) -> bytes:
        """Of the answer, its chunks as they came."""
        head = self.data.split(b"HTTP/1.1 100 Continue\r\n\r\n")[-1]
        return head.partition(b"\r\n\r\n")[2]


async def exchange(host: str, port: int, sent: Sent, patience: float) -> Received:
    """Send on a connection of its own, and read until the answer is complete or the server closes.

    Args:
        host, port: the server.
        sent: what to do.
        patience: seconds until a server that says nothing counts as hung.
    """
    reader, writer = await asyncio.open_connection(host, port)
    data = bytearray()
    try:
        with contextlib.suppress(*_GOING):  # a server may answer, and close, before all is sent
            await asyncio.wait_for(_write(writer, sent), patience)
        if sent.manner != "waits":
            return Received(data=b"", hung=False)
        async with asyncio.timeout(patience if sent.whole else SHORT_SECONDS):
            with contextlib.suppress(*_GOING):
                while not _complete(data) and (piece := await reader.read(65_536)):
                    data += piece
    except TimeoutError:
        return Received(data=bytes(data), hung=sent.whole and not _complete(data))
    finally:
        if sent.manner == "resets":
            _break(writer)
        writer.close()
        with contextlib.suppress(*_GOING, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), SHORT_SECONDS)
    return Received(data=bytes(data), hung=False)


async def _write(writer: asyncio.StreamWriter, sent: Sent) -> None:
    for index, piece in enumerate(sent.pieces):
        if index and sent.pause:
            await asyncio.sleep(sent.pause)
        writer.write(piece)
        await writer.drain()


def _complete(data: bytearray) -> bool:
    """Whether an answer has all that its own headers promise."""
    received = Received(data=bytes(data), hung=False)
    if received.status is None or b"\r\n\r\n" not in data:
        return False
    headers = received.headers
    if "content-length" in headers:
        return len(received.body) >= int(headers["content-length"])
    if "chunked" in headers.get("transfer-encoding", ""):
        return received.body.endswith(b"0\r\n\r\n")
    return received.status in (204, 304)


def _break(writer: asyncio.StreamWriter) -> None:
    """Let the connection end with a reset, without a farewell."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
