"""COCO's instance annotations → photos with a mask for each category.

The format: cocodataset.org/#format-data, `images`, `annotations`, `categories`. Masks of one
category are united; crowd regions are left out, for they are not cut along their objects. Polygons
and run-length codes are rasterised by `pycocotools`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from devil.errors import DataError
from devil.images import open_image
from devil.storage import storage

SHOWN = 5
"""Names in an error message."""


@dataclass(frozen=True, kw_only=True)
class CocoPhoto:
    """One photo and the outlines of its objects."""

    key: str
    """The file's name in the annotations; names the photo in results."""
    path: str
    """Where the file is."""
    size: tuple[int, int]
    """Width and height that the annotations give, in pixels."""
    outlines: Mapping[str, tuple[Any, ...]]
    """By category name, in the order of the category ids: `segmentation` of each object."""

    def image(self) -> Image.Image:
        """The photo in RGB.

        Raises:
            ImageError: the file is damaged.
            DataError: the photo has another size than its annotations.
        """
        with fsspec.open(self.path, "rb") as file:
            image = open_image(file.read())  # type: ignore[union-attr]
        if image.size != self.size:
            raise DataError(
                f"{self.path} has {image.size[0]} × {image.size[1]} pixels, its annotations are "
                f"for {self.size[0]} × {self.size[1]}; scale both alike."
            )
        return image

    def masks(self) -> dict[str, np.ndarray]:
        """By category name the union of its objects: (height, width) bool, with any pixel.

        Raises:
            DataError: an outline is neither polygons nor a run-length code of the photo's size.
        """
        united = {name: self._union(name, parts) for name, parts in self.outlines.items()}
        return {name: mask for name, mask in united.items() if mask.any()}

    def _union(self, name: str, outlines: tuple[Any, ...]) -> np.ndarray:
        width, height = self.size
        codes = []
        for outline in outlines:
            try:
                codes += _codes(outline, height, width)
            except (TypeError, ValueError, KeyError, IndexError) as error:
                raise DataError(
                    f"{self.key}: the outline {str(outline)[:60]!r} of a {name} cannot be read "
                    f"({error}); give polygons of at least three points, or a run-length code of "
                    f"{height} × {width} pixels."
                ) from error
        return np.asarray(rle.decode(rle.merge(codes)), bool)


def _codes(outline: Any, height: int, width: int) -> list[Any]:
    """Compressed run-length codes of one `segmentation`."""
    if isinstance(outline, list):
        # pycocotools would take four numbers for a box.
        if not outline or any(len(polygon) < 6 or len(polygon) % 2 for polygon in outline):
            raise ValueError("a polygon has under three points")
        polygons: Any = [[float(x) for x in polygon] for polygon in outline]
        return rle.frPyObjects(polygons, height, width)  # pyright: ignore[reportCallIssue]
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"its size is {outline['size']}")
    counts = outline["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"it runs over {sum(counts)} pixels")
        return [rle.frPyObjects(outline, height, width)]
    return [{"size": [height, width], "counts": counts}]


@dataclass(frozen=True, kw_only=True)
class CocoInstances:
    """Photos with instance masks."""

    photos: Mapping[str, CocoPhoto]
    """By key, sorted; those with at least one object that is no crowd."""
    categories: tuple[str, ...]
    """Names of all categories, by their ids."""

    @classmethod
    def open(cls, instances: str, photos: str) -> "CocoInstances":
        """Read annotations; no photo is decoded.

        Args:
            instances: address of `instances.json`.
            photos: folder of the photos that it names.

        Raises:
            DataError: the file is missing, broken or contradicts itself, or photos are missing.
        """
        document = read_document(instances, "instance annotations")
        try:
            return _open(document, instances, photos.rstrip("/"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{instances} is malformed ({type(error).__name__}: {error}); it must hold images, "
                "annotations and categories as COCO's instance files do."
            ) from error


def read_document(path: str, kind: str) -> Any:
    """The JSON of a file of COCO's annotations.

    Args:
        path: its address.
        kind: which annotations, for messages.

    Raises:
        DataError: the file is missing or no JSON.
        StorageError: the file system fails.
    """
    with storage(path):
        fs, name = fsspec.core.url_to_fs(path)
        try:
            content = fs.cat_file(name)
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist; give COCO {kind}.") from error
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); give COCO {kind}.") from error


def _open(document: Any, source: str, folder: str) -> CocoInstances:
    names = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
    _refuse(source, "categories named twice", _repeated(list(names.values())))
    _refuse(
        source, "category ids given twice", _repeated([c["id"] for c in document["categories"]])
    )
    images = {entry["id"]: entry for entry in document["images"]}
    _refuse(source, "image ids given twice", _repeated([i["id"] for i in document["images"]]))
    _refuse(source, "photos given twice", _repeated([i["file_name"] for i in document["images"]]))
    objects = [entry for entry in document["annotations"] if not entry.get("iscrowd", 0)]
    known = {a["image_id"] for a in objects} - images.keys()
    _refuse(source, "annotations for unknown images", sorted(known, key=str))
    known = {a["category_id"] for a in objects} - names.keys()
    _refuse(source, "annotations of unknown categories", sorted(known, key=str))
    outlines: dict[Any, dict[Any, list[Any]]] = {}
    for entry in objects:
        of_image = outlines.setdefault(entry["image_id"], {})
        of_image.setdefault(entry["category_id"], []).append(entry["segmentation"])
    photos = [
        CocoPhoto(
            key=str(images[image]["file_name"]),
            path=f"{folder}/{images[image]['file_name']}",
            size=(int(images[image]["width"]), int(images[image]["height"])),
            outlines={names[c]: tuple(found[c]) for c in names if c in found},
        )
        for image, found in outlines.items()
    ]
    if not photos:
        raise DataError(f"{source} has no photo with objects; give COCO instance annotations.")
    _check_files(photos, folder)
    return CocoInstances(
        photos={photo.key: photo for photo in sorted(photos, key=lambda photo: photo.key)},
        categories=tuple(names.values()),
    )


def _check_files(photos: list[CocoPhoto], folder: str) -> None:
    fs, root = fsspec.core.url_to_fs(folder)
    there = {path.removeprefix(root.rstrip("/") + "/") for path in fs.find(root)}
    missing = sorted(photo.key for photo in photos if photo.key not in there)
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of {len(photos)} annotated photos: "
            f"{', '.join(missing[:SHOWN])}{', …' if len(missing) > SHOWN else ''}; give the folder "
            "that the annotations belong to."
        )


def _repeated(values: list[Any]) -> list[Any]:
    seen: set[Any] = set()
    return [value for value in values if value in seen or seen.add(value)]


def _refuse(source: str, what: str, found: list[Any]) -> None:
    if found:
        shown = ", ".join(map(str, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")
        raise DataError(f"{source} has {what}: {shown}; correct the file.")
