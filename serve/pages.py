"""The explorer page: `GET /` and the fixed files under `/page`, read once when the service starts.

The page is static: HTML, style and script modules of `serve/page`, without a build step and without
anything from another host, which its content security policy forbids. Colours, geometry and
drawing are the report's own files. The page asks the same API as every other client.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request, Response

from devil.report.heatmap import colour_table
from devil.report.page import MEASURES, TEMPLATES
from serve.problems import ProblemError

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again: a new release shows at once
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
DRAWN = ("geometry.js", "drawing.js")
"""Scripts of the report that the page's module `drawing.js` is made of."""
EXPORTS = (
    "COLOURS", "GRADIENT", "MEASURES", "cellAt", "cellCentre", "formatEnds", "formatPercent",
    "formatRange", "gridLines", "layerTitle", "make", "normaliseMap", "paint",
)  # fmt: skip


class PageFile(NamedTuple):
    """A file of the page, as it is sent."""

    content: bytes
    media_type: str
    tag: str
    """Changes with the content (HTTP's ETag)."""

    @classmethod
    def of(cls, name: str, content: bytes) -> "PageFile":
        """A file by its name's ending."""
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, MEDIA_TYPES[Path(name).suffix], f'"{digest}"')


def read_page() -> dict[str, PageFile]:
    """All files of the page by the names under which they are asked for."""
    paths = [*FOLDER.glob("*.*"), *FOLDER.glob("samples/*.*")]
    files = {str(path.relative_to(FOLDER)): path.read_bytes() for path in sorted(paths)}
    files["palette.css"] = (TEMPLATES / "palette.css").read_bytes()
    files["drawing.js"] = drawing_module().encode()
    return {name: PageFile.of(name, content) for name, content in files.items()}


def drawing_module() -> str:
    """What the page shares with the report, as one script module."""
    parts = [(TEMPLATES / name).read_text("utf-8") for name in DRAWN]
    parts += [
        f'const COLOURS = colourTable("{colour_table().tobytes().hex()}");\n',
        "const GRADIENT = gradientOf(COLOURS);\n",
        f"const MEASURES = {json.dumps(MEASURES)};\n",
        f"export {{ {', '.join(EXPORTS)} }};\n",
    ]
    return "".join(parts)


def add_page(api: FastAPI) -> None:
    """Serve the page at `/`; its files are no part of the API, nor of its description."""
    files = read_page()

    async def index(request: Request) -> Response:
        return _answer(request, files["index.html"])

    async def file(request: Request, name: str) -> Response:
        if name not in files:
            raise ProblemError(404, f"The page has no file {name[:100]!r}.")
        return _answer(request, files[name])

    for path, route in (("/", index), ("/page/{name:path}", file)):
        api.add_api_route(path, route, methods=["GET", "HEAD"], include_in_schema=False)


def _answer(request: Request, file: PageFile) -> Response:
    """The file, or 304 if the browser has this very content."""
    headers = HEADERS | {"ETag": file.tag}
    known = request.headers.get("if-none-match", "")
    if file.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
