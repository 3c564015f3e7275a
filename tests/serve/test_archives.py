"""Uploaded archives: honest ones come out whole, hostile ones are refused."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve import archives
from serve.archives import ArchiveError, ArchiveLimits, Unpacked, plain_name, unpack

LIMITS = ArchiveLimits(pictures=20, entries=40, bytes=100_000)
Files = list[tuple[str, bytes]]


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def tarred(files: Files, mode: str = "w", **changes: object) -> bytes:
    """A tar; `changes` are attributes of every entry."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in changes.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


KINDS: dict[str, Callable[[Files], bytes]] = {
    "zip": zipped,
    "stored": lambda files: zipped(files, zipfile.ZIP_STORED),
    "tar": tarred,
    "gzip": lambda files: tarred(files, "w:gz"),
}


def unpacked(archive: bytes, folder: Path, limits: ArchiveLimits = LIMITS) -> Unpacked:
    return unpack(io.BytesIO(archive), folder / "out", limits)


def written(folder: Path) -> dict[str, bytes]:
    """Everything below a folder; each must be a plain file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink()
        if not path.is_dir():
            assert path.is_file()
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_come_out_with_their_names(kind: str, tmp_path: Path) -> None:
    files = [
        ("a.jpg", b"one"),
        ("deep/er/b.PNG", b"two" * 40_000 if kind != "stored" else b"two"),
        ("./été/雪.webp", b""),
        ("notes.txt", b"no picture"),
        ("__MACOSX/._a.jpg", b"no picture"),
        ("deep/._b.png", b"no picture"),
        ("jpg", b"no picture"),
        ("inner.zip", zipped([("x.jpg", b"x")])),
        ("inner.tar", tarred([("x.jpg", b"x")])),
    ]
    limits = ArchiveLimits(pictures=3, entries=9, bytes=200_000)
    assert unpacked(KINDS[kind](files), tmp_path, limits) == Unpacked(3, 6)
    found = written(tmp_path)
    assert found == {
        "out/a.jpg": files[0][1],
        "out/deep/er/b.PNG": files[1][1],
        "out/été/雪.webp": b"",
    }


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_of_one_name_are_all_kept(kind: str, tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("./a.jpg", b"2"), ("a.2.jpg", b"3"), ("a.jpg", b"4")]
    assert unpacked(KINDS[kind](files), tmp_path).pictures == 4
    assert sorted(written(tmp_path).values()) == [b"1", b"2", b"3", b"4"]


NAMES = [
    "/etc/a.jpg",
    "../a.jpg",
    "a/../../b.jpg",
    "..\\a.jpg",
    "C:\\a.jpg",
    "C:/a.jpg",
    "\\\\host\\a.jpg",
    "a\nb.jpg",
    "x" * 300 + ".jpg",
    "/".join(["abcdefgh"] * 130) + ".jpg",
    "/".join("a" * 40) + ".jpg",
]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"leads out|control|too long"):
        unpacked(KINDS[kind]([("good.jpg", b"x"), (name, b"x")]), tmp_path)
    assert set(written(tmp_path)) <= {"out/good.jpg"}


@given(st.text(min_size=1, max_size=20) | st.text("./\\aC:\0é", min_size=1, max_size=20))
def test_no_name_leads_out(name: str) -> None:
    try:
        found = plain_name(name)
    except ArchiveError:
        return
    path = os.path.normpath(f"/folder/{found}")
    assert path.startswith("/folder/") and path != "/folder/"
    assert "\\" not in str(found) and "\0" not in str(found)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", ["link.jpg", "link"])
def test_links_and_devices_in_tars_are_refused(kind: bytes, name: str, tmp_path: Path) -> None:
    archive = tarred([(name, b"")], type=kind, linkname="/etc/passwd", devmajor=1, devminor=3)
    with pytest.raises(ArchiveError, match="link or a device"):
        unpacked(archive, tmp_path)
    assert written(tmp_path) == {}


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match="link or a device"):
        unpacked(stream.getvalue(), tmp_path)
    assert written(tmp_path) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_limits_count_what_comes_out(kind: str, tmp_path: Path) -> None:
    bomb = KINDS[kind]([("a.jpg", bytes(60_000)), ("b.jpg", bytes(60_000))])
    with pytest.raises(ArchiveError, match="more than 100,000 bytes"):
        unpacked(bomb, tmp_path / "bytes")
    assert sum(map(len, written(tmp_path).values())) <= LIMITS.bytes
    with pytest.raises(ArchiveError, match="more than 20 pictures"):
        unpacked(KINDS[kind]([(f"{i}.jpg", b"") for i in range(21)]), tmp_path / "pictures")
    with pytest.raises(ArchiveError, match="more than 40 entries"):
        unpacked(KINDS[kind]([(f"{i}.txt", b"") for i in range(41)]), tmp_path / "files")


def test_folders_are_counted_too(tmp_path: Path) -> None:
    files = [(f"{i}/b/c/{i}.jpg", b"") for i in range(15)]
    with pytest.raises(ArchiveError, match="more than 40 folders"):
        unpacked(zipped(files), tmp_path)
    for number, archive in enumerate((folders(40, zipped), folders(40, tarred))):
        with pytest.raises(ArchiveError, match="more than 40 entries"):
            unpacked(archive, tmp_path / str(number))
    for name, archive in (("zip", folders(39, zipped)), ("tar", folders(39, tarred))):
        assert unpacked(archive, tmp_path / name) == Unpacked(1, 0)


def folders(count: int, make: Callable[..., bytes]) -> bytes:
    """An archive of so many entries of folders, and a picture after them."""
    if make is zipped:
        return zipped([*((f"{i}/", b"") for i in range(count)), ("a.jpg", b"x")])
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for _ in range(count):
            folder = tarfile.TarInfo(".")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_takes_too_long_is_left(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SECONDS", 0.0)
    with pytest.raises(ArchiveError, match="not unpacked after 0 s"):
        unpacked(KINDS[kind]([("a.jpg", b"x")]), tmp_path)
    assert written(tmp_path) == {}


class Endless(io.RawIOBase):
    """A file that says the same again and again."""

    def __init__(self, head: bytes, again: bytes) -> None:
        self.head, self.again, self.place = head, again, 0

    def seek(self, place: int, whence: int = 0) -> int:
        self.place = place
        return place

    def read(self, size: int = -1) -> bytes:
        if self.place < len(self.head):
            content = self.head[self.place :][:size]
        else:
            start = (self.place - len(self.head)) % len(self.again)
            content = (self.again * (size // len(self.again) + 2))[start:][:size]
        self.place += len(content)
        return content


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"", gzip.compress(b"")),
        (b"\x1f\x8b\x08\x08" + bytes(6), b"x"),
    ],
    ids=["empty ones", "a name without an end"],
)
def test_gzips_that_nothing_comes_out_of_are_left(
    head: bytes, again: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SECONDS", 0.1)
    with pytest.raises(ArchiveError, match="not unpacked after"):
        unpack(Endless(head, again), tmp_path / "out", LIMITS)  # type: ignore[arg-type]


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    honest = zipped([("a.jpg", bytes(200_000))])
    lying = honest.replace(struct.pack("<L", 200_000), struct.pack("<L", 10))
    assert lying != honest
    with pytest.raises(ArchiveError, match=r"damaged|more than"):
        unpacked(lying, tmp_path)
    assert sum(map(len, written(tmp_path).values())) <= LIMITS.bytes


def test_a_zip_with_an_endless_directory_is_not_read(tmp_path: Path) -> None:
    archive = bytearray(zipped([("a.jpg", b"x")]))
    end = archive.rfind(b"PK\x05\x06")
    padding = bytes(2_000_000)
    archive[end:end] = padding
    end += len(padding)
    size = struct.unpack_from("<L", archive, end + 12)[0] + len(padding)
    struct.pack_into("<L", archive, end + 12, size)
    with pytest.raises(ArchiveError, match="too long"):
        unpacked(bytes(archive), tmp_path)


def test_a_zip_with_too_long_a_directory_is_not_unpacked_in_part(tmp_path: Path) -> None:
    limits = ArchiveLimits(pictures=7000, entries=7000, bytes=100_000)
    archive = bytearray(zipped([("a.jpg", b"x")]))
    start, end = archive.rfind(b"PK\x01\x02"), archive.rfind(b"PK\x05\x06")
    directory = bytes(archive[start:end]) * 21_000
    archive[start:end] = directory
    struct.pack_into("<L", archive, start + len(directory) + 12, len(directory))
    with pytest.raises(ArchiveError, match="more than 7,000 entries"):
        unpacked(bytes(archive), tmp_path, limits)
    assert written(tmp_path) == {}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_with_an_endless_header_is_not_read(mode: str, tmp_path: Path) -> None:
    archive = tarred([("a.jpg", b"")], mode, pax_headers={"comment": "x" * 3_000_000})
    with pytest.raises(ArchiveError, match="too long"):
        unpacked(archive, tmp_path, ArchiveLimits(pictures=9, entries=9, bytes=9_000_000))


def test_encrypted_entries_and_other_methods_are_refused(tmp_path: Path) -> None:
    archive = bytearray(zipped([("a.jpg", b"x")]))
    central = archive.rfind(b"PK\x01\x02")
    archive[central + 8] |= 1
    with pytest.raises(ArchiveError, match="encrypted"):
        unpacked(bytes(archive), tmp_path / "one")
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(ArchiveError, match="other way than deflate"):
            unpacked(zipped([("a.jpg", b"x" * 99)], method), tmp_path / str(method))


def test_a_sparse_entry_is_refused(tmp_path: Path) -> None:
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg"}
    content = b"1\n0\n5\n".ljust(512, b"\0") + b"12345".ljust(512, b"\0")
    archive = tarred([("x.jpg", content)], pax_headers=sparse | {"GNU.sparse.realsize": "5"})
    with pytest.raises(ArchiveError, match="sparse"):
        unpacked(archive, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_breaks_off_or_goes_on_is_refused(kind: str, tmp_path: Path) -> None:
    whole = KINDS[kind]([(f"{i}.jpg", os.urandom(3000)) for i in range(4)])
    end = 14_436 if kind == "tar" else len(whole) - 600  # tars are padded with zeros
    for number, cut in enumerate((5, 300, 3600, len(whole) // 2, end)):
        with pytest.raises(ArchiveError):
            unpacked(whole[: max(4, cut)], tmp_path / str(number))
    if kind == "tar":
        (tmp_path / "more").mkdir()
        with pytest.raises(ArchiveError, match="goes on after its end"):
            unpacked(whole + whole, tmp_path / "more")


def test_a_damaged_entry_of_a_zip_is_refused(tmp_path: Path) -> None:
    archive = bytearray(zipped([("a.jpg", os.urandom(500))], zipfile.ZIP_STORED))
    archive[100] ^= 255
    with pytest.raises(ArchiveError, match="damaged"):
        unpacked(bytes(archive), tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all" * 99, bytes(10_240)])
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        unpacked(content, tmp_path)


def test_without_pictures_and_with_a_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no pictures"):
        unpacked(zipped([("a.txt", b"x")]), tmp_path / "none")
    for number, names in enumerate((["a.jpg", "a.jpg/b.jpg"], ["a.jpg/b.jpg", "a.jpg"])):
        with pytest.raises(ArchiveError, match="a file and a folder"):
            unpacked(tarred([(name, b"x") for name in names]), tmp_path / str(number))


SEEDS = [make([("a.jpg", b"x" * 700), ("b/c.png", b"y")]) for make in KINDS.values()]


def test_a_zip_with_an_entry_without_a_name(tmp_path: Path) -> None:
    """zipfile ends a name at its first null, and then looks for the last letter of none."""
    archive = zipped([("name", b"x")])
    assert archive.count(b"name") == 2
    with pytest.raises(ArchiveError, match="an entry has no name"):
        unpacked(archive.replace(b"name", b"\0ame"), tmp_path)


@pytest.mark.parametrize("place", [0x7FFFFFFF, -0x40])
def test_an_entry_that_lies_elsewhere(place: int, tmp_path: Path) -> None:
    """In a file on a disk: a place before its beginning is an error of the system there."""
    content = bytearray(zipped([("a.jpg", b"x")]))
    if place > 0:
        struct.pack_into("<L", content, content.rfind(b"PK\x01\x02") + 42, place)
    else:  # the list says that it begins later, so that all places are counted from before
        end = content.rfind(b"PK\x05\x06")
        struct.pack_into(
            "<L", content, end + 16, struct.unpack_from("<L", content, end + 16)[0] - place
        )
    (tmp_path / "a.zip").write_bytes(content)
    with open(tmp_path / "a.zip", "rb") as file:
        with pytest.raises(ArchiveError, match="lies outside"):
            unpack(file, tmp_path / "out", LIMITS)


@settings(max_examples=300)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_no_damage_ends_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, archive: bytes, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(archive)
    for place, value in changes:
        content[place % len(content)] = value
    try:
        unpacked(bytes(content), folder)
    except ArchiveError:
        pass
    assert all(name.startswith("out/") for name in written(folder))
