"""What is sent to the service, and how its answers are read, without sending anything."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from PIL import Image

from devil.errors import DataError, ImageError, ServiceError
from devil.explanation import Explanation
from devil.picture import open_image

NDJSON = "application/x-ndjson"

Picture = str | PathLike[str] | bytes | Image.Image
"""A path, the bytes of a file, or a picture."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request; it can be sent several times."""

    method: str
    path: str
    repeatable: bool = True
    """It may be sent again although the service might have done it."""
    gone: str | None = None
    """It removes something: what the service says, with 404, where there is nothing. A repetition
    that hears this has succeeded; another 404 is a proxy's, and says nothing."""
    accept: str = "application/json"
    json: Mapping[str, Any] | None = None
    form: Mapping[str, list[str]] | None = None
    files: tuple[tuple[str, "File"], ...] = ()
    """By field; with files, or a form, the request is multipart."""

    def arguments(self) -> dict[str, Any]:
        """What httpx makes a request from."""
        return {
            "method": self.method,
            "url": self.path,
            "headers": {"Accept": self.accept},
            "json": self.json,
            "data": self.form,
            "files": list(self.files) or None,
        }


class File(NamedTuple):
    """A file of a multipart request."""

    name: str
    content: bytes | BinaryIO
    kind: str = "application/octet-stream"


class Sent(NamedTuple):
    """A picture that is sent."""

    content: bytes
    image: Image.Image
    source: str | None


def read_picture(image: Picture) -> Sent:
    """A picture's file, and the picture itself; one that is open already goes as PNG.

    Raises:
        ImageError: it cannot be read, with the message that `DeViL.explain` has for it.
    """
    decoded = open_image(image)
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        decoded.save(stream, "PNG")
        return Sent(stream.getvalue(), decoded, None)
    if isinstance(image, bytes):
        return Sent(image, decoded, None)
    try:
        return Sent(Path(image).read_bytes(), decoded, str(image))
    except OSError as error:
        raise ImageError(f"{image} cannot be read ({error}); give the path of a file.") from error


def picture_call(path: str, pictures: Iterable[bytes], form: Mapping[str, list[str]]) -> Call:
    """Ask something about one picture."""
    files = tuple(("image", File("image", content)) for content in pictures)
    return Call(method="POST", path=path, form=form, files=files)


def pictures_call(pictures: Iterable[bytes], form: Mapping[str, list[str]]) -> Call:
    """Ask for explanations of several pictures, one line each as it is done."""
    return replace(picture_call("/v1/explain", pictures, form), accept=NDJSON)


def get(*parts: str, kind: str = "", query: Mapping[str, Any] | None = None) -> Call:
    """Read something, named by the parts of its path, with an ending such as `.png`."""
    return Call(method="GET", path=address(*parts) + kind + _query(query or {}))


def address(*parts: str) -> str:
    """A path below `/v1`.

    Raises:
        DataError: a part is empty or would lead elsewhere.
    """
    for part in parts:
        if part in ("", ".", ".."):
            raise DataError(f"{part!r} is no id; give one that the service named.")
    return "/".join(["/v1", *(quote(part, safe="") for part in parts)])


def _query(values: Mapping[str, Any]) -> str:
    pairs = [f"{name}={quote(str(value), safe='')}" for name, value in values.items()]
    return "?" + "&".join(pairs) if pairs else ""


def read_explanation(content: bytes, headers: Mapping[str, str], picture: Sent) -> Explanation:
    """The explanation of a picture that was sent.

    Raises:
        ServiceError: the answer is none.
    """
    place = headers.get("content-location", "")
    return attached(read_json(content), picture, place.rpartition("/explanations/")[2] or None)


def attached(document: Any, picture: Sent | None, id: str | None) -> Explanation:
    """An explanation of its document, with the picture that it is of, and its id.

    Raises:
        ServiceError: it is no explanation, or one of another picture.
    """
    try:
        image = None if picture is None else picture.image
        explanation = Explanation.from_dict(document, image=image)
    except DataError as error:
        raise ServiceError(f"the service gave no explanation that can be read: {error}") from error
    source = explanation.source if picture is None else picture.source
    return replace(explanation, source=source, id=id)


def read_json(content: bytes) -> Any:
    """A JSON document.

    Raises:
        ServiceError: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ServiceError(
            f"the service answered {content[:60]!r} where JSON is due ({error}); look at the "
            "address."
        ) from error
