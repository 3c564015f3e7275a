"""Sources are told by their endings, listed, cut, and opened again from plain values."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import tiny

from devil.config import FetchConfig, SourceConfig, from_dict, to_dict
from devil.data.sample import Failure, Sample
from devil.data.shard import Shard
from devil.data.source import FORMATS, guessed_format, open_source
from devil.errors import ConfigError, DataError, MissingToolError


def samples(rows: Iterator[Sample | Failure]) -> list[Sample]:
    found = list(rows)
    assert all(isinstance(row, Sample) for row in found), found
    return [row for row in found if isinstance(row, Sample)]


def test_tars_are_read_by_whoever_opens_them(tmp_path: Path) -> None:
    paths = tiny.tiny_shards(tmp_path, shards=2, rows=3)
    for address in (str(tmp_path), str(tmp_path / "*.tar")):
        shards = open_source(address).shards()
        assert shards == [Shard("00000", paths[0]), Shard("00001", paths[1])]
        other = open_source(address)
        sent = [Shard(*tuple(shard)) for shard in shards]
        keys = [sample.key for shard in sent for sample in samples(other.read(shard))]
        assert keys == [f"{s:05d}{r:04d}" for s in range(2) for r in range(3)]
    first, second = (other.identity(shard) for shard in shards)
    assert first != second and first.size == Path(paths[0]).stat().st_size
    assert open_source(paths[0]).identity(shards[0]) == first


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.tar", "webdataset"),
        ("a.parquet", "parquet"),
        ("a.TSV", "tsv"),
        ("s3://bucket/captions.json", "coco"),
        ("a.csv", "table"),
        ("a.jsonl", "table"),
        ("*.parquet", "parquet"),
    ],
)
def test_endings_tell_the_format(name: str, kind: str) -> None:
    assert guessed_format(name) == kind
    assert type(open_source(name)) is type(open_source(name, SourceConfig(format=kind)))  # type: ignore[arg-type]


def test_folders_are_told_by_what_lies_in_them(tmp_path: Path) -> None:
    (path,) = tiny.tiny_shards(tmp_path / "tars", shards=1, rows=1)
    assert [s.name for s in open_source(str(tmp_path / "tars")).shards()] == ["00000"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "cc.tsv").write_text("a dog\thttp://host/1\n")
    assert [s.name for s in open_source(str(tmp_path / "lists")).shards()] == ["cc-00000"]
    shutil.copy(path, tmp_path / "shard.data")
    for address in (tmp_path, tmp_path / "shard.data", tmp_path / "nothing"):
        with pytest.raises(DataError, match=rf"no shards at .*--source.format.*{list(FORMATS)[1]}"):
            open_source(str(address))
    config = SourceConfig(format="webdataset")
    assert len(samples(open_source(path, config).read(Shard("x", str(tmp_path / "shard.data")))))


def test_added_files_are_found(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/source-test/b.tsv", b"one\thttp://host/1\n")
    source = open_source("memory://source-test/*.tsv")
    assert [shard.name for shard in source.shards()] == ["b-00000"]
    fs.pipe("/source-test/a.tsv", b"two\thttp://host/2\n")
    assert [shard.name for shard in source.shards()] == ["a-00000", "b-00000"]


def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingToolError, match=r"abfs://.*not installed.*extra `s3`"):
        open_source("abfs://container/a.tar").shards()


def test_configurations_survive_json() -> None:
    config = SourceConfig(format="tsv", fetch=FetchConfig(retries=7))
    plain = to_dict(config)
    assert plain["fetch"]["retries"] == 7
    assert from_dict(SourceConfig, plain) == config
    with pytest.raises(ConfigError, match="FetchConfig has no field"):
        from_dict(SourceConfig, {"fetch": {"retry": 1}})
    for wrong in ({"rows_per_shard": 0}, {"format": "zip"}, {"fetch": None}):
        with pytest.raises(ConfigError):
            replace(config, **wrong)
    for name in ("concurrency", "per_host", "timeout_seconds", "total_seconds", "max_bytes"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            FetchConfig(**{name: 0})
    with pytest.raises(ConfigError, match="retries is -1"):
        FetchConfig(retries=-1)


@pytest.mark.parametrize("name", ["photos [2014]", "photos*", "what?"])
def test_marks_in_a_name_that_exists_are_no_pattern(name: str, tmp_path: Path) -> None:
    (path,) = tiny.tiny_shards(tmp_path / name, shards=1, rows=1)
    for address in (str(tmp_path / name), path):
        assert open_source(address).shards() == [Shard("00000", path)]
