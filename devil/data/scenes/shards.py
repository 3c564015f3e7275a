"""Writes scenes as webdataset shards the way img2dataset does, and reads their objects back.

Reading captions out of shards is the work of `devil.data.webdataset`.
"""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devil.data.scenes.scene import Scene, SceneConfig, SceneObject, render_scene, scene_seed
from devil.errors import ConfigError, DataError


def write_scene_shards(
    folder: str | os.PathLike[str],
    count: int,
    seed: int,
    shard_size: int = 1000,
    config: SceneConfig | None = None,
) -> list[Path]:
    """Writes `count` scenes as webdataset shards the way img2dataset does.

    Each shard `00000.tar` holds, per scene, `<key>.jpg`, `<key>.txt` (the first caption) and
    `<key>.json` (all captions, the background, and the objects with run-length coded masks).
    `00000_stats.json` lies beside it. A file appears under its name only when it is complete, and
    the same arguments write the same bytes.

    Returns:
        The tar files in order.

    Raises:
        ConfigError: `count` or `shard_size` is out of range.
    """
    if count < 1 or not 1 <= shard_size <= 10_000:
        raise ConfigError(
            f"need count >= 1 and 1 <= shard_size <= 10000, not count={count}, "
            f"shard_size={shard_size}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, start in enumerate(range(0, count, shard_size)):
        indices = range(start, min(start + shard_size, count))
        paths.append(_write_shard(folder, shard, indices, seed, config))
    return paths


def _write_shard(
    folder: Path, shard: int, indices: range, seed: int, config: SceneConfig | None
) -> Path:
    path = folder / f"{shard:05d}.tar"
    partial = path.with_name(path.name + ".tmp")
    with tarfile.open(partial, "w") as tar:
        for index in indices:
            key = f"{shard:05d}{index - indices.start:04d}"
            _add_scene(tar, key, render_scene(scene_seed(seed, index), config))
    os.replace(partial, path)
    stats = {
        "count": len(indices),
        "successes": len(indices),
        "failed_to_download": 0,
        "failed_to_resize": 0,
    }
    path_of_stats = folder / f"{shard:05d}_stats.json"
    partial = path_of_stats.with_name(path_of_stats.name + ".tmp")
    partial.write_text(json.dumps(stats, indent=4))
    os.replace(partial, path_of_stats)
    return path


def _add_scene(tar: tarfile.TarFile, key: str, scene: Scene) -> None:
    jpeg = io.BytesIO()
    scene.image.save(jpeg, "JPEG", quality=95)
    record = {
        "key": key,
        "caption": scene.captions[0],
        "captions": list(scene.captions),
        "width": scene.image.width,
        "height": scene.image.height,
        "status": "success",
        "background": scene.background,
        "objects": [_object_record(item) for item in scene.objects],
    }
    members = (
        ("jpg", jpeg.getvalue()),
        ("txt", scene.captions[0].encode()),
        ("json", json.dumps(record).encode()),
    )
    for extension, data in members:
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _object_record(item: SceneObject) -> dict[str, Any]:
    words = {word: getattr(item, word) for word in _OBJECT_WORDS}
    return {**words, "mask": {"size": list(item.mask.shape), "counts": _run_lengths(item.mask)}}


_OBJECT_WORDS = ("kind", "colour", "texture", "size", "place")


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, a run of False first (uncompressed COCO form)."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def read_scene_objects(record: Mapping[str, Any]) -> tuple[SceneObject, ...]:
    """Reads the objects, masks included, of the JSON member of a scene.

    Raises:
        DataError: "objects" is not there, or an object lacks a word or has a malformed mask.
    """
    if not isinstance(record.get("objects"), list):
        raise DataError(
            f"scene {record.get('key')!r} has no list 'objects' (it has {sorted(record)}); "
            "only shards of write_scene_shards have one"
        )
    return tuple(_read_object(item, record.get("key")) for item in record["objects"])


def _read_object(item: Mapping[str, Any], key: Any) -> SceneObject:
    try:
        words = [str(item[word]) for word in _OBJECT_WORDS]
        height, width = item["mask"]["size"]
        counts = np.asarray(item["mask"]["counts"], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"scene {key!r} has a malformed object: {error!r}") from error
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise DataError(
            f"scene {key!r}: the mask of a {words[1]} {words[0]} has runs of {counts.sum()} pixels "
            f"in all, not {height} x {width} = {height * width}"
        )
    flat = np.repeat(np.arange(counts.size) % 2 == 1, counts)
    return SceneObject(*words, mask=flat.reshape((height, width), order="F"))
