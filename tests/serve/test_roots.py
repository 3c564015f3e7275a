"""Allowed roots: no spelling, link or scheme leads out of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.roots import RootError, Roots

PARTS = st.sampled_from(["a", "link", "out", "..", ".", "", "secret", "open", "%2e%2e", "…"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a link that stays inside and one that leads out, and a secret beside it."""
    folder = tmp_path_factory.mktemp("roots").resolve()
    for name in ("open/a/b", "open-too", "secret"):
        (folder / name).mkdir(parents=True)
    (folder / "open" / "link").symlink_to(folder / "open" / "a")
    (folder / "open" / "out").symlink_to(folder / "secret")
    (folder / "door").symlink_to(folder / "open")
    return folder


def test_what_lies_in_a_root_is_found_where_it_really_is(folder: Path) -> None:
    roots = Roots([str(folder / "door")])
    root = str(folder / "open")
    for address, found in {
        f"{folder}/door": root,
        f"{folder}/door/": root,
        f"file://{folder}/open/a": f"{root}/a",
        f"{folder}/open/link/b": f"{root}/a/b",
        f"{folder}/secret/../open/a": f"{root}/a",
        f"{folder}/open/a/nothing-there": f"{root}/a/nothing-there",
    }.items():
        place = roots.place(address)
        assert (place.address, place.inside) == (found, root)


@pytest.mark.parametrize(
    "address",
    [
        "{}",
        "{}/open-too",
        "{}/open/..",
        "{}/open/a/../../secret",
        "{}/open/out",
        "{}/open/out/x",
        "{}/open/link/../../secret",
        "file://{}/secret",
        "FILE://{}/secret",
        "file://host{}/open",
        "local://{}/secret",
        "simplecache::file://{}/open",
        "zip://x::{}/open/a",
        "{}/open/a\x00",
        "{}/open/a\n",
        "open/a",
        "",
        "/",
        "//",
        "~/photos",
        "http://localhost/open",
        "s3://bucket/photos",
    ],
)
def test_nothing_else_is(folder: Path, address: str) -> None:
    with pytest.raises(RootError, match="not under"):
        Roots([str(folder / "open")]).place(address.format(folder))


def test_a_link_with_a_chain_in_its_target_is_refused(folder: Path) -> None:
    strange = folder / "open" / "zip:" / ":x"
    (folder / "open" / "a::b").mkdir(exist_ok=True)
    if not (folder / "open" / "chain").is_symlink():
        (folder / "open" / "chain").symlink_to(folder / "open" / "a::b")
    roots = Roots([str(folder / "open")])
    assert roots.place(str(strange)).address == str(strange)
    with pytest.raises(RootError):
        roots.place(str(folder / "open" / "chain"))


@given(st.lists(PARTS, max_size=8).map("/".join))
def test_no_spelling_leads_out(folder: Path, tail: str) -> None:
    root = folder / "open"
    try:
        place = Roots([str(root)]).place(f"{root}/{tail}")
    except RootError:
        return
    assert Path(place.address).resolve().is_relative_to(root)


BUCKET = Roots(["s3://bucket/photos/", "gs://whole"])


def test_a_buckets_prefix_holds_whole_segments() -> None:
    for address in ("s3://bucket/photos", "s3://bucket/photos/", "s3://bucket/photos/a/b.jpg"):
        place = BUCKET.place(address)
        assert (place.address, place.inside) == (address.rstrip("/"), None)
    assert BUCKET.place("gs://whole/x").address == "gs://whole/x"


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket",
        "s3://bucket/photos2",
        "s3://bucket/photos/../secret",
        "s3://bucket/photos/%2e%2e/secret",
        "s3://bucket/photos/a/./b",
        "s3://bucket/photos//b",
        "s3://bucket/photos/*/x",
        "s3://bucket/photos?versionId=1",
        "s3://bucket/photos/..\\secret",
        "S3://bucket/photos",
        "s3a://bucket/photos",
        "s3:/bucket/photos",
        "s3://other/photos",
        "gs://whole.example",
        "simplecache::s3://bucket/photos",
        "s3://bucket/photos::file:///etc",
        "/etc",
    ],
)
def test_other_spellings_of_a_bucket_are_refused(address: str) -> None:
    with pytest.raises(RootError):
        BUCKET.place(address)


@pytest.mark.parametrize(
    "root", ["photos", "s3://", "s3://bucket/../x", "file://", "", "./a", "s4://bucket/x"]
)
def test_roots_that_have_no_plain_meaning(root: str) -> None:
    with pytest.raises(ValueError, match="audit root"):
        Roots([root])
