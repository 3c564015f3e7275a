"""COCO's caption annotations → photos with all their captions.

The format: cocodataset.org/#format-data, `images` and `annotations` with a `caption` each.
"""

from typing import Any

from devil.config import SourceConfig
from devil.data.coco import read_document
from devil.data.photo_rows import PhotoRow
from devil.data.sample import texts
from devil.errors import DataError

FORM = "must hold images and annotations with captions as COCO's caption files do"


def coco_rows(address: str, config: SourceConfig) -> list[PhotoRow]:
    """Photos in the order of `images`; those without a caption, too.

    Raises:
        DataError: the file is missing, broken or contradicts itself, or names no photo.
        StorageError: the file system fails.
    """
    document = read_document(address, "caption annotations")
    try:
        rows = _rows(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{address} is malformed ({type(error).__name__}: {error}); it {FORM}."
        ) from error
    if not rows:
        raise DataError(f"{address} names no photo; it {FORM}.")
    return rows


def _rows(document: Any) -> list[PhotoRow]:
    captions: dict[Any, list[Any]] = {entry["id"]: [] for entry in document["images"]}
    for entry in document["annotations"]:
        if entry["image_id"] not in captions:
            raise ValueError(f"a caption is of the unknown image {entry['image_id']}")
        captions[entry["image_id"]].append(entry["caption"])
    return [
        PhotoRow(str(entry["file_name"]), texts(captions[entry["id"]]))
        for entry in document["images"]
    ]
