"""Explanations that are kept under an id, with their pictures, so that they can be looked at later.

Each is a folder of the service's state: `explanation.json` and the picture's file as it was sent.
It is renamed into its place when it is whole. The oldest go when there are too many.
"""

import asyncio
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Literal

import ray
from fastapi import FastAPI, Response

from devil.explanation import Explanation
from devil.picture import open_image
from serve.problems import ProblemError, problem_responses
from serve.schemas import ExplanationDocument
from serve.sending import StateFile

FOLDER, DOCUMENT, PICTURE = "explanations", "explanation.json", "picture"
ID = re.compile(r"[0-9a-f]{32}")
STALE_SECONDS = 3600
DRAWN_AT_ONCE = 2
"""Each is a process."""
DRAWING_SECONDS = 60.0
# The page runs the report's own script, and must not act in the service's name.
SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts", "X-Content-Type-Options": "nosniff"}
NEVER_CHANGES = {"Cache-Control": "private, max-age=86400, immutable"}

logger = logging.getLogger("ray.serve")


class Kept:
    """The explanations of a folder."""

    def __init__(self, state: str, most: int) -> None:
        """Take over what is there.

        Args:
            state: folder of the service; all copies of the ingress must share it.
            most: explanations that are kept.
        """
        self.folder, self.most = Path(state) / FOLDER, most
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._sweep()
        found = [path for path in self.folder.iterdir() if ID.fullmatch(path.name)]
        self._ids = deque(path.name for path in sorted(found, key=lambda p: p.stat().st_mtime))

    def _sweep(self) -> None:
        """Remove what an application that died left half written."""
        self._swept = time.monotonic()
        for half in self.folder.glob(".new-*"):
            with suppress(FileNotFoundError):  # whole this moment, and renamed
                if time.time() - half.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(half, ignore_errors=True)

    def keep(self, document: bytes, picture: bytes) -> str | None:
        """Write an explanation and its picture.

        Returns:
            The id, which cannot be guessed; None if nothing is kept, or nothing can be written.
        """
        if not self.most:
            return None
        name = secrets.token_hex(16)
        temporary = self.folder / f".new-{name}"
        try:
            temporary.mkdir(mode=0o700)
            (temporary / DOCUMENT).write_bytes(document)
            (temporary / PICTURE).write_bytes(picture)
            os.rename(temporary, self.folder / name)
        except OSError:
            logger.exception("an explanation cannot be kept (setting `state`)")
            shutil.rmtree(temporary, ignore_errors=True)
            return None
        with self._lock:
            self._ids.append(name)
            gone = [self._ids.popleft() for _ in range(len(self._ids) - self.most)]
        for old in gone:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        if time.monotonic() - self._swept > STALE_SECONDS:
            self._sweep()
        return name

    def find(self, name: str) -> Path:
        """The folder of an explanation.

        Raises:
            ProblemError: 404, there is none.
        """
        if ID.fullmatch(name) and (self.folder / name / DOCUMENT).is_file():
            return self.folder / name
        raise self.missing()

    def missing(self) -> ProblemError:
        """What to say where there is none."""
        return ProblemError(
            404,
            f"no explanation is kept under this id; the last {self.most} are. Ask for it again.",
            "id",
        )


@ray.remote(num_cpus=0)
def _drawn(document: bytes, picture: bytes, kind: Literal["png", "html"]) -> bytes:
    """An explanation as a picture or a page; in a process of its own, for it takes a second."""
    found = Explanation.from_json(document, image=open_image(picture))
    if kind == "html":
        return found.to_html().encode("utf-8", errors="replace")
    with tempfile.TemporaryDirectory() as folder:
        return found.to_png(Path(folder) / "explanation.png").read_bytes()


async def _finished(task: ray.ObjectRef) -> bytes:
    """A task's result; nobody works on for a client that is gone, or was told to come again."""
    try:
        return await task
    except asyncio.CancelledError:
        ray.cancel(task, force=True)
        raise


def add_kept_routes(api: FastAPI, kept: Kept) -> None:
    """`GET /v1/explanations/{id}`, its picture, and the explanation drawn and as a page."""

    at_once = asyncio.Semaphore(DRAWN_AT_ONCE)

    async def drawn(name: str, kind: Literal["png", "html"]) -> bytes:
        folder = kept.find(name)
        try:
            async with asyncio.timeout(DRAWING_SECONDS), at_once:
                document = await asyncio.to_thread((folder / DOCUMENT).read_bytes)
                picture = await asyncio.to_thread((folder / PICTURE).read_bytes)
                return await _finished(_drawn.remote(document, picture, kind))
        except FileNotFoundError:  # it went this moment
            raise kept.missing() from None
        except TimeoutError:
            raise ProblemError(
                503,
                "It was not drawn in time: too many are, or it holds too much; try again later.",
            ) from None

    async def png(id: str) -> Response:
        return Response(await drawn(id, "png"), media_type="image/png", headers=NEVER_CHANGES)

    async def html(id: str) -> Response:
        headers = SANDBOX | NEVER_CHANGES
        return Response(await drawn(id, "html"), media_type="text/html", headers=headers)

    async def picture(id: str) -> Response:
        path = kept.find(id) / PICTURE
        headers, media = SANDBOX | NEVER_CHANGES, "application/octet-stream"
        return StateFile(path, kept.missing(), media_type=media, headers=headers)

    async def document(id: str) -> Response:
        path = kept.find(id) / DOCUMENT
        headers, media = NEVER_CHANGES, "application/json"
        return StateFile(path, kept.missing(), media_type=media, headers=headers)

    place, missing = "/v1/explanations/{id}", problem_responses(404, 500, 503)
    ranges = missing | problem_responses(400, 416)
    for ending, route, media, summary, problems in (
        (".png", png, "image/png", "A kept explanation, drawn", missing),
        (
            ".html",
            html,
            "text/html",
            "A kept explanation as a page that needs nothing else",
            missing,
        ),
        ("/picture", picture, "application/octet-stream", "The picture that was explained", ranges),
    ):
        content = {media: {"schema": {"type": "string", "format": "binary"}}}
        api.add_api_route(
            place + ending,
            route,
            summary=summary,
            response_class=Response,
            responses={200: {"content": content}, **problems},
        )
    api.add_api_route(
        place,
        document,
        summary="A kept explanation",
        response_model=ExplanationDocument,
        responses=ranges,
    )
