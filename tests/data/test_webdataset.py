"""Reading shards: whole ones, and every way in which one can be damaged."""

import json
import tarfile
from pathlib import Path

import fsspec
import pytest
import tiny

from devil.data.webdataset import Sample, expected_samples, list_shards, read_shard
from devil.errors import DataError

IMAGE = b"\xff\xd8 some bytes"
DEEP = "[" * 100_000
"""JSON that Python's reader does not follow to its end."""


def read(path: str) -> list[Sample]:
    return list(read_shard(path))


def read_until_error(path: str) -> tuple[list[Sample], str]:
    samples: list[Sample] = []
    with pytest.raises(DataError) as caught:
        for sample in read_shard(path):
            samples.append(sample)
    return samples, str(caught.value)


def shard(folder: Path, rows: int = 4, size: int = 3000) -> str:
    members: list[tuple[str, bytes]] = []
    for row in range(rows):
        members += tiny.sample_members(
            f"{row:05d}", [f"caption {row}", "other"], IMAGE * (size // 14)
        )
    return tiny.write_tar(folder / "shard.tar", members)


def test_samples_of_whole_shards(tmp_path: Path) -> None:
    (path,) = tiny.tiny_shards(tmp_path, shards=1, rows=5)
    samples = read(path)
    assert [s.key for s in samples] == [f"00000{row:04d}" for row in range(5)]
    assert {s.source for s in samples} == {path}
    for sample in samples:
        assert sample.image is not None and sample.image.startswith(b"\xff\xd8")
        assert len(sample.captions) == 2
        assert sample.record["key"] == sample.key


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"txt": b" from txt \n"}, ("from txt",)),
        ({"txt": b"txt", "json": b'{"caption": "json"}'}, ("json",)),
        ({"txt": b"txt", "json": b'{"captions": ["a", " ", "b"], "caption": "c"}'}, ("a", "b")),
        ({"txt": b"txt", "json": b'{"captions": [], "caption": null}'}, ("txt",)),
        ({"txt": b"txt", "json": b'{"captions": "no list"}'}, ("txt",)),
        ({"txt": b"txt", "json": b'{"captions": 5, "caption": 6}'}, ("txt",)),
        ({"txt": b"txt", "json": b'{"captions": [null, 7, ""]}'}, ("txt",)),
        ({"txt": b"txt", "json": b"{broken"}, ("txt",)),
        ({"txt": b"txt", "json": b"[1]"}, ("txt",)),
        ({"txt": b"txt", "json": DEEP.encode()}, ("txt",)),
        ({"txt": b"  \n"}, ()),
        ({"json": b'{"caption": ""}'}, ()),
        ({}, ()),
        ({"txt": "caf\u00e9 \u2603".encode()}, ("caf\u00e9 \u2603",)),
        ({"txt": b"caf\xe9"}, ("caf\ufffd",)),
        ({"json": b'{"caption": "lone \\ud800"}'}, ("lone \\ud800",)),
    ],
)
def test_captions(members: dict[str, bytes], captions: tuple[str, ...], tmp_path: Path) -> None:
    entries = [("k.jpg", IMAGE), *((f"k.{suffix}", c) for suffix, c in members.items())]
    (sample,) = read(tiny.write_tar(tmp_path / "s.tar", entries))
    assert sample.captions == captions
    "".join(sample.captions).encode()  # can be written


def test_keys_and_pictures(tmp_path: Path) -> None:
    members = [
        ("a/1.JPG", b"upper"),
        ("a/1.txt", b"x"),
        ("b/1.png", b"png"),
        ("b/1.seg.png", b"mask"),
        ("2.txt", b"no picture"),
        ("\udc80.webp", b"no unicode"),
    ]
    samples = read(tiny.write_tar(tmp_path / "s.tar", members))
    assert [(s.key, s.image) for s in samples] == [
        ("a/1", b"upper"),
        ("b/1", b"png"),
        ("2", None),
        ("\\udc80", b"no unicode"),
    ]


def test_folders_and_links_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    (tmp_path / "1.jpg").write_bytes(IMAGE)
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.add(tmp_path / "1.jpg", "folder/1.jpg")
    assert [s.key for s in read(str(path))] == ["folder/1"]


def test_every_cut_is_noticed_and_what_came_before_is_read(tmp_path: Path) -> None:
    path = Path(shard(tmp_path))
    content = path.read_bytes()
    whole = read(str(path))
    data = len(content.rstrip(b"\0"))
    with tarfile.open(path) as tar:
        ends = [m.offset_data + -(-m.size // 512) * 512 for m in tar]
    # At every member's end, within each header and content, and right behind the data.
    cuts = sorted({1, 300, *ends, *(e + 200 for e in ends[:-1]), *(e - 600 for e in ends), data})
    for cut in cuts:
        path.write_bytes(content[:cut])
        samples, message = read_until_error(str(path))
        assert "is damaged after" in message and str(path) in message, (cut, message)
        assert f"after {len(samples)} samples" in message
        complete = sum(end <= cut for end in ends[2::3])
        assert complete - 1 <= len(samples) <= complete + 1, cut
        for sample, expected in zip(samples[:complete], whole, strict=False):
            assert sample == expected


def test_no_tar_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar " * 1000)
    (tmp_path / "zero.tar").write_bytes(b"")
    for name in ("text.tar", "zero.tar"):
        samples, message = read_until_error(str(tmp_path / name))
        assert not samples and "is damaged after 0 samples" in message
    with pytest.raises(DataError, match="does not exist"):
        read(str(tmp_path / "nothing.tar"))
    empty = tiny.write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="is empty"):
        read(empty)


def test_statistics_say_how_many_there_should_be(tmp_path: Path) -> None:
    path = shard(tmp_path, rows=3)
    statistics = tmp_path / "shard_stats.json"
    counts = ("null", "3", "2", "Infinity", "NaN")
    for text in ("{}", "broken", DEEP, *(f'{{"successes": {count}}}' for count in counts)):
        statistics.write_text(text)
        assert len(read(path)) == 3
    statistics.write_text(json.dumps({"successes": 5}))
    samples, message = read_until_error(path)
    assert len(samples) == 3
    assert "holds 3 samples, its statistics file says 5" in message


def test_statistics_that_a_link_leads_out_to_are_not_read(tmp_path: Path) -> None:
    path = shard(tmp_path / "photos", rows=3)
    (tmp_path / "secret.json").write_text('{"successes": 5}')
    (tmp_path / "photos" / "shard_stats.json").symlink_to(tmp_path / "secret.json")
    assert expected_samples(path, str(tmp_path)) == 5
    assert expected_samples(path, str(tmp_path / "photos")) is None
    assert len(list(read_shard(path, str(tmp_path / "photos")))) == 3


def test_listing(tmp_path: Path) -> None:
    paths = tiny.tiny_shards(tmp_path / "shards", shards=3, rows=1)
    assert list_shards(str(tmp_path / "shards")) == paths
    assert list_shards(str(tmp_path / "shards" / "*1.tar")) == paths[1:2]
    assert list_shards(paths[2]) == [paths[2]]
    (tmp_path / "none").mkdir()
    for pattern in (tmp_path / "none", tmp_path / "missing.tar", tmp_path / "*.tar"):
        with pytest.raises(DataError, match="no shards at"):
            list_shards(str(pattern))


def test_other_file_systems(tmp_path: Path) -> None:
    (local,) = tiny.tiny_shards(tmp_path, shards=1, rows=2)
    fs = fsspec.filesystem("memory")
    fs.pipe("/webdataset-test/00000.tar", Path(local).read_bytes())
    (path,) = list_shards("memory://webdataset-test")
    assert path.startswith("memory://")
    assert [s.key for s in read(path)] == [s.key for s in read(local)]


def test_a_row_that_comes_twice_is_two_rows(tmp_path: Path) -> None:
    rows = [("a", b"1"), ("a", b"2"), ("b", b"3")]
    members = [entry for key, image in rows for entry in tiny.sample_members(key, ["x"], image)]
    samples = read(tiny.write_tar(tmp_path / "s.tar", members))
    assert [(s.key, s.image) for s in samples] == rows


def test_a_broken_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = Path(shard(tmp_path, rows=4))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[6].offset
    content = bytearray(path.read_bytes())
    content[third + 10] ^= 0xFF  # in the name, so that the checksum is wrong
    path.write_bytes(content)
    samples, message = read_until_error(str(path))
    assert len(samples) == 2
    assert "is damaged after 2 samples" in message and "a header is broken" in message


def test_tars_that_were_put_together_are_noticed(tmp_path: Path) -> None:
    one, two = (Path(shard(tmp_path / name, rows=2)) for name in "ab")
    for end in (len(one.read_bytes()), len(one.read_bytes().rstrip(b"\0")) // 512 * 512 + 1536):
        (tmp_path / "both.tar").write_bytes(one.read_bytes()[:end] + two.read_bytes())
        samples, message = read_until_error(str(tmp_path / "both.tar"))
        assert len(samples) == 2 and "several tars were put together" in message


def test_a_tar_in_a_tar_is_a_row_without_a_picture(tmp_path: Path) -> None:
    inner = Path(shard(tmp_path)).read_bytes()
    (sample,) = read(tiny.write_tar(tmp_path / "outer.tar", [("inner.tar", inner)]))
    assert (sample.key, sample.image, sample.captions) == ("inner", None, ())
