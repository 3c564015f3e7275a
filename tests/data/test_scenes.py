"""Scenes: the same every time, masks that hold what they claim, captions that do not lie."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from devil.data.scenes import (
    COLOURS,
    PLACES,
    SIZE_WORDS,
    SIZES,
    TEXTURES,
    SceneConfig,
    SceneObject,
    read_scene_objects,
    render_scene,
    scene_captions,
    scenes,
    write_scene_shards,
)
from devil.data.scenes.shards import _object_record
from devil.errors import ConfigError, DataError

CONFIG = SceneConfig()
KINDS = CONFIG.kinds
SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}


@pytest.fixture(scope="module")
def many():
    return list(scenes(120, seed=3))


def middle(item):
    rows, columns = np.nonzero(item.mask)
    return ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)


def mentions(caption):
    """Objects that a caption names, as (size, colour, texture, kind), None where unsaid."""
    pattern = (
        rf"\ban? (?:({'|'.join(SIZE_OF)}) )?({'|'.join(COLOURS)}) "
        rf"(?:({'|'.join(TEXTURES)}) )?({'|'.join(KINDS)})\b"
    )
    return [
        (SIZE_OF.get(size), colour, texture or None, kind)
        for size, colour, texture, kind in re.findall(pattern, caption)
    ]


def find(scene, colour, kind):
    found = [item for item in scene.objects if (item.colour, item.kind) == (colour, kind)]
    assert len(found) == 1, (colour, kind, [item.name for item in scene.objects])
    return found[0]


def test_a_seed_is_a_scene(many):
    again = list(scenes(20, seed=3))
    for first, second in zip(many, again, strict=False):
        assert first.image.tobytes() == second.image.tobytes()
        assert first.captions == second.captions
        assert all(
            np.array_equal(a.mask, b.mask)
            for a, b in zip(first.objects, second.objects, strict=True)
        )
    assert render_scene(1).image.tobytes() == render_scene(1).image.tobytes()


def test_other_seeds_are_other_scenes(many):
    pictures = {scene.image.tobytes() for scene in [*many, *scenes(20, seed=4)]}
    assert len(pictures) == len(many) + 20


def test_everything_that_may_occur_does(many):
    items = [item for scene in many for item in scene.objects]
    assert {len(scene.objects) for scene in many} == {1, 2, 3, 4}
    assert {item.kind for item in items} == set(KINDS)
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.texture for item in items} == set(TEXTURES)
    assert {item.size for item in items} == set(SIZES)
    assert {item.place for item in items} == {place for row in PLACES for place in row}
    assert {scene.background for scene in many} == set(CONFIG.backgrounds)


def test_masks_are_disjoint_and_names_unique(many):
    for scene in many:
        masks = np.stack([item.mask for item in scene.objects])
        assert masks.shape[1:] == (scene.image.height, scene.image.width)
        assert masks.sum(axis=0).max() == 1
        assert len({item.name for item in scene.objects}) == len(scene.objects)
        assert masks.any(axis=(1, 2)).all()


def test_masks_hold_the_colour_they_claim(many):
    """Away from the rim, a plain object's pixels are nearest to its own colour word."""
    palette = np.array(list(COLOURS.values()), dtype=float)
    names = list(COLOURS)
    checked = 0
    for scene in many:
        pixels = np.asarray(scene.image, dtype=float)
        for item in scene.objects:
            if item.texture != "plain":
                continue
            distance = np.linalg.norm(pixels[item.mask][:, None] - palette, axis=2)
            nearest = np.bincount(distance.argmin(axis=1), minlength=len(names))
            assert names[nearest.argmax()] == item.colour, item.name
            checked += 1
    assert checked > 40


def test_masks_end_where_the_object_ends(many):
    """One pixel outside the mask, little of a plain object's colour is left."""
    inside, outside = [], []
    for scene in many:
        pixels = np.asarray(scene.image, dtype=float)
        taken = np.any([item.mask for item in scene.objects], axis=0)
        for item in scene.objects:
            if item.texture != "plain" or item.colour == "white":
                continue
            grown = item.mask.copy()
            for _ in range(2):
                padded = np.pad(grown, 1)
                grown |= padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            near = np.linalg.norm(pixels - COLOURS[item.colour], axis=2) < 70
            inside.append(near[item.mask].mean())
            outside.append(near[grown & ~taken].mean())
    assert np.mean(inside) > 0.55
    assert np.mean(outside) < 0.04


def test_a_later_object_hides_an_earlier_one():
    """Where two objects meet, only one mask has the pixel, and the picture shows that object."""
    met = 0
    for scene in scenes(150, seed=8, config=SceneConfig(min_objects=4, textures=("plain",))):
        pixels = np.asarray(scene.image, dtype=float)
        for index, item in enumerate(scene.objects):
            rows, columns = np.nonzero(item.mask)
            shown = np.median(pixels[rows, columns], axis=0)
            own = np.linalg.norm(shown - COLOURS[item.colour])
            others = [o for o in scene.objects[index + 1 :] if o.colour != item.colour]
            assert all(own < np.linalg.norm(shown - COLOURS[o.colour]) for o in others)
            padded = np.pad(item.mask, 1)
            grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            met += any((grown & other.mask).any() for other in others)
    assert met > 0


def test_the_hole_of_a_ring_is_not_the_ring():
    config = SceneConfig(kinds=("ring",), max_objects=1)
    for scene in scenes(5, seed=0, config=config):
        x, y = (round(value) for value in middle(scene.objects[0]))
        assert not scene.objects[0].mask[y, x]


def test_sizes_and_places_are_true(many):
    for scene in many:
        side = scene.image.width
        for item in scene.objects:
            x, y = middle(item)
            rows, columns = np.nonzero(item.mask)
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            assert (item.size == "large") == (extent > 0.337 * side)
            near = {
                PLACES[int(np.clip(3 * (y + dy) / side, 0, 2))][
                    int(np.clip(3 * (x + dx) / side, 0, 2))
                ]
                for dx in (-6, 0, 6)
                for dy in (-6, 0, 6)
            }
            assert item.place in near


def test_captions_are_true(many):
    for scene in many:
        assert len(set(scene.captions)) == len(scene.captions) == 5
        for caption in scene.captions:
            assert caption == caption.lower() and not caption.endswith(".")
            named = mentions(caption)
            assert named, caption
            kinds = [word for word in re.findall(r"[a-z]+", caption) if word in KINDS]
            colours = [word for word in re.findall(r"[a-z]+", caption) if word in COLOURS]
            assert len(kinds) == len(colours) == len(named), caption
            for size, colour, texture, kind in named:
                item = find(scene, colour, kind)
                assert size in (None, item.size), caption
                assert texture in (None, item.texture) and texture != "plain", caption
            for background in CONFIG.backgrounds:
                word = background.split()[-1]
                assert (word in caption.split()) <= (background == scene.background), caption
            place = re.search(
                r"(?:at|in|on) the (top left|top right|bottom left|bottom right|top|bottom|left"
                r"|right|centre)",
                caption,
            )
            if place:
                assert len(named) == 1
                assert place[1] == find(scene, named[0][1], named[0][3]).place, caption


def test_relations_are_true(many):
    seen = set()
    for scene in many:
        for caption in scene.captions:
            found = re.search(r"\b(above|below|left of|right of|next to)\b", caption)
            if not found:
                continue
            (_, colour, _, kind), (_, other_colour, _, other_kind) = mentions(caption)
            (x, y), (u, v) = (
                middle(find(scene, colour, kind)),
                middle(find(scene, other_colour, other_kind)),
            )
            seen.add(found[1])
            true = {
                "above": v - y > abs(u - x),
                "below": y - v > abs(u - x),
                "left of": u - x > abs(v - y),
                "right of": x - u > abs(v - y),
                "next to": np.hypot(u - x, v - y) < 0.62 * scene.image.width,
            }
            assert true[found[1]], caption
    assert seen == {"above", "below", "left of", "right of", "next to"}


def test_captions_of_one_and_of_many_objects_are_both_common(many):
    counts = np.array([len(mentions(c)) for s in many if len(s.objects) > 1 for c in s.captions])
    assert 0.35 < (counts == 1).mean() < 0.75
    assert (counts > 1).mean() > 0.25
    firsts = [len(mentions(s.captions[0])) for s in many if len(s.objects) > 1]
    assert min(firsts) == 1 < max(firsts)


def test_captions_without_pictures_are_the_same(many):
    assert list(scene_captions(40, seed=3)) == [scene.captions for scene in many[:40]]


def test_a_config_is_obeyed():
    config = SceneConfig(
        image_size=96,
        min_objects=2,
        max_objects=2,
        kinds=("fish", "star"),
        colours=("red", "blue"),
        textures=("plain",),
        backgrounds=("sea",),
    )
    for scene in scenes(10, seed=0, config=config):
        assert scene.image.size == (96, 96) and scene.background == "sea"
        assert len(scene.objects) == 2
        for item in scene.objects:
            assert item.kind in ("fish", "star") and item.colour in ("red", "blue")
            assert item.texture == "plain"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": ("circle", "cube")}, "kinds must be different words"),
        ({"colours": ()}, "colours must be different words"),
        ({"textures": ("plain", "plain")}, "textures must be different words"),
        ({"backgrounds": ("lava",)}, "backgrounds must be different words"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3"),
        ({"image_size": 8}, "image_size must be between"),
        ({"kinds": ("star",), "colours": ("red",)}, "cannot make 4 objects"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(fields, message):
    with pytest.raises(ConfigError, match=message):
        SceneConfig(**fields)


def test_shards_read_back(tmp_path, many):
    paths = write_scene_shards(tmp_path, 7, seed=3, shard_size=3)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        name for i in range(3) for name in (f"{i:05d}.tar", f"{i:05d}_stats.json")
    )
    written = []
    for path, count in zip(paths, (3, 3, 1), strict=True):
        stats = json.loads(path.with_name(path.stem + "_stats.json").read_text())
        assert stats == {
            "count": count,
            "successes": count,
            "failed_to_download": 0,
            "failed_to_resize": 0,
        }
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        keys = [f"{path.stem}{index:04d}" for index in range(count)]
        assert list(members) == [f"{k}.{ext}" for k in keys for ext in ("jpg", "txt", "json")]
        written += [{ext: members[f"{k}.{ext}"] for ext in ("jpg", "txt", "json")} for k in keys]

    for scene, sample in zip(many, written, strict=False):
        record = json.loads(sample["json"])
        assert sample["txt"].decode() == record["caption"] == scene.captions[0]
        assert tuple(record["captions"]) == scene.captions
        assert record["status"] == "success" and record["background"] == scene.background
        image = Image.open(io.BytesIO(sample["jpg"]))
        assert image.format == "JPEG"
        assert (record["width"], record["height"]) == image.size == scene.image.size
        change = np.asarray(image, dtype=float) - np.asarray(scene.image, dtype=float)
        assert np.abs(change).mean() < 6
        items = read_scene_objects(record)
        assert [i.name for i in items] == [i.name for i in scene.objects]
        for item, truth in zip(items, scene.objects, strict=True):
            assert (item.texture, item.size, item.place) == (truth.texture, truth.size, truth.place)
            assert item.mask.dtype == bool and np.array_equal(item.mask, truth.mask)


def test_shards_are_the_same_bytes_each_time(tmp_path):
    (first,) = write_scene_shards(tmp_path / "a", 2, seed=5)
    (second,) = write_scene_shards(tmp_path / "b", 2, seed=5)
    assert first.read_bytes() == second.read_bytes()


def test_a_mask_that_starts_filled_reads_back():
    mask = np.array([[True, False, True], [False, True, True]])
    record = _object_record(SceneObject("star", "red", "plain", "small", "top", mask))
    assert record["mask"] == {"size": [2, 3], "counts": [0, 1, 2, 3]}
    (item,) = read_scene_objects({"objects": [record]})
    assert np.array_equal(item.mask, mask)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"key": "1"}, "has no list 'objects'"),
        ({"key": "1", "objects": [{"kind": "star"}]}, "malformed object"),
    ],
)
def test_a_malformed_record_is_refused(record, message):
    with pytest.raises(DataError, match=message):
        read_scene_objects(record)


@pytest.mark.parametrize("counts", [[5], [-1, 7], [3, 4]])
def test_a_mask_of_the_wrong_length_is_refused(counts):
    words = {"kind": "star", "colour": "red", "texture": "plain", "size": "small", "place": "top"}
    record = {"objects": [{**words, "mask": {"size": [2, 3], "counts": counts}}]}
    with pytest.raises(DataError, match="mask of a red star"):
        read_scene_objects(record)


@pytest.mark.parametrize(("count", "shard_size"), [(0, 10), (5, 0), (5, 20_000)])
def test_impossible_shards_are_refused(tmp_path, count, shard_size):
    with pytest.raises(ConfigError, match="shard_size"):
        write_scene_shards(tmp_path, count, seed=0, shard_size=shard_size)
