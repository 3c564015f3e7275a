"""The same few rows in every format of sources, and their way into a bucket."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import tiny

from devil.config import FetchConfig, SourceConfig
from devil.data.sample import Failure
from devil.data.source import Source

CONFIG = SourceConfig(rows_per_shard=2, fetch=FetchConfig(retries=0))


def upload(folder: Path, bucket: str) -> None:
    fs, root = fsspec.core.url_to_fs(bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def rows(source: Source) -> list[tuple[Any, ...]]:
    found = [row for shard in source.shards() for row in source.read(shard)]
    return [
        (row.key, row.stage, row.error)
        if isinstance(row, Failure)
        else (row.key, row.captions, row.image)
        for row in found
    ]


def write_all(folder: Path) -> list[str]:
    """Rows in every format; returns their addresses below the folder in the order of `FORMATS`."""
    tiny.tiny_shards(folder / "tars", shards=2, rows=3)
    table = pa.table(
        {"key": list("abcde"), "image": [b"%d" % i for i in range(5)], "text": ["a dog"] * 5}
    )
    pq.write_table(table, folder / "some.parquet", row_group_size=2)
    (folder / "cc.tsv").write_text("".join(f"a dog\tftp://host/{i}\n" for i in range(5)))
    (folder / "photos").mkdir()
    for name in ("a.jpg", "\u72ac [1].jpg"):
        (folder / "photos" / name).write_bytes(name.encode())
    lines = ["file,caption", "a.jpg,one", "\u72ac [1].jpg,two", "gone.jpg,three"]
    (folder / "photos" / "captions.csv").write_text("\n".join(lines))
    (folder / "photos" / "captions.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg"}],'
        ' "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 1, "caption": "more"}]}'
    )
    return ["tars", "some.parquet", "cc.tsv", "photos/captions.json", "photos/captions.csv"]
