"""Extraction: restarts, bad rows, damaged shards, and rows that depend on themselves alone."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import reference
import tiny
import torch

from devil import Backbone, ExtractionConfig, load_backbone
from devil.config import SourceConfig
from devil.data.sample import Failure, Sample
from devil.data.shard import Shard
from devil.data.source import Tars, open_source
from devil.errors import FeatureStoreError
from devil.extraction import Extractor, ShardRecord
from devil.features import FeatureStore, tensor_column
from devil.images import open_image
from devil.manifest import Manifest
from devil.pooling import dropout_masks, row_generator

CONFIG = ExtractionConfig(draws=3, batch_size=4, seed=5)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(tiny.tiny_backbone_weights(tmp_path_factory.mktemp("weights")))


def create(backbone: Backbone, root: Path | str, config: ExtractionConfig = CONFIG) -> FeatureStore:
    weights = tiny.BackboneConfig(name=backbone.name, layers=backbone.layers)
    return FeatureStore.create(str(root), Manifest.of(backbone, weights, config))


def tar(path: str) -> Shard:
    return Shard(Path(path).stem, path)


def extract(
    backbone: Backbone, root: Path | str, shards: list[str], config: ExtractionConfig = CONFIG
) -> tuple[FeatureStore, list[ShardRecord]]:
    store = create(backbone, root, config)
    extractor = Extractor(backbone, open_source("any.tar"), store, threads=1)
    return store, [extractor(tar(shard)) for shard in shards]


def tensors(store: FeatureStore) -> dict[str, np.ndarray]:
    tables = pa.concat_tables([store.read(part) for part in store.parts()])
    names = [n for n in tables.column_names if n.startswith(("feature.", "class_token."))]
    return {name: tensor_column(tables, name) for name in names}


def test_batches_may_have_another_size_than_the_store_began_with(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=5)
    first, _ = extract(backbone, tmp_path / "first", shards)
    sizes, features = [], Extractor._features
    monkeypatch.setattr(
        Extractor, "_features", lambda self, good: sizes.append(len(good)) or features(self, good)
    )
    store, smaller = create(backbone, tmp_path / "store"), replace(CONFIG, batch_size=2)
    Extractor(backbone, open_source("any.tar"), store, smaller, threads=1)(tar(shards[0]))
    assert sizes == [2, 2, 1]
    for name, values in tensors(first).items():
        np.testing.assert_allclose(tensors(store)[name], values, atol=1e-3)


def test_rows_equal_the_reference(backbone: Backbone, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=3)
    store, records = extract(backbone, tmp_path / "store", shards)
    assert [(r.rows, r.errors, r.skipped) for r in records] == [(3, 0, False)]
    table = store.read(store.parts()[0])
    for row in range(3):
        key = f"00000{row:04d}"
        assert table.column("key")[row].as_py() == key
        assert table.column("width")[row].as_py() == tiny.SIDE
        caption, other = table.column("captions")[row].as_py()
        assert other == f"{caption} again 1"
        image = open_image(tiny.encoded(tiny.picture(caption, seed=row)))
        with torch.inference_mode():
            features = backbone(backbone.transform(image)[None])
        for layer in backbone.layers:
            feature_map = features[layer].map[0]
            stored = torch.tensor(tensor_column(table, f"feature.{layer}")[row]).float()
            assert stored.shape == (1 + CONFIG.draws, feature_map.shape[0])
            expected = [reference.mean_pool(feature_map)]
            generator = row_generator(CONFIG.seed, f"{layer}|{key}")
            locations = feature_map[0].numel()
            for mask in dropout_masks(CONFIG.draws, locations, 0.5, generator):
                expected.append(reference.masked_mean(feature_map, mask.tolist()))
            torch.testing.assert_close(stored, torch.stack(expected), rtol=2e-3, atol=2e-3)
            assert not torch.equal(stored[1], stored[2])


def test_a_second_run_skips_what_is_done(backbone: Backbone, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path / "shards", shards=3, rows=3)
    store, first = extract(backbone, tmp_path / "store", shards[:2])
    before = {p: (Path(p).read_bytes(), os.stat(p).st_mtime_ns) for p in store.parts()}
    store, second = extract(backbone, tmp_path / "store", shards)
    assert [r.skipped for r in second] == [True, True, False]
    assert [r._replace(skipped=False) for r in second[:2]] == first
    assert all(r.stages.keys() == {"read", "decode", "backbone", "write"} for r in second)
    for path, (content, time) in before.items():
        assert (Path(path).read_bytes(), os.stat(path).st_mtime_ns) == (content, time)
    assert len(store.parts()) == 3


def test_killed_between_errors_and_part(backbone: Backbone, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=3)
    store, _ = extract(backbone, tmp_path / "store", shards)
    (part,) = map(Path, store.parts())
    content = tensors(store)
    part.unlink()
    leftover = part.with_name(f".{part.name}.0123abcd.tmp")
    leftover.write_bytes(b"half a part")
    store, (record,) = extract(backbone, tmp_path / "store", shards)
    assert not record.skipped
    assert store.parts() == [str(part)]
    assert all(np.array_equal(v, content[k]) for k, v in tensors(store).items())


def mixed_shard(folder: Path) -> tuple[str, dict[str, str]]:
    """A shard with good rows and one row of every bad kind; returns bad keys → stage."""
    good = tiny.encoded(tiny.picture(tiny.CAPTIONS[0]))
    rows = {
        "00good": (good, b"a red circle"),
        "01corrupt": (good[:-200], b"cut off"),
        "02text": (b"this is no JPEG", b"text named .jpg"),
        "03empty": (good, b"  \n"),
        "04nothing": (None, b"no picture"),
        "05zero": (b"", b"zero bytes"),
        "06pixel": (tiny.encoded(tiny.Image.new("RGB", (1, 1))), b"one pixel"),
        "07grey": (tiny.encoded(tiny.picture(tiny.CAPTIONS[1]).convert("L")), b"grey"),
        "08nocaption": (good, None),
        "09large": (tiny.encoded(tiny.Image.new("RGB", (400, 300))), b"over the limit"),
    }
    members = []
    for key, (image, caption) in rows.items():
        members += [(f"{key}.jpg", image)] if image is not None else []
        members += [(f"{key}.txt", caption)] if caption is not None else []
    bad = dict.fromkeys(["01corrupt", "02text", "04nothing", "05zero", "06pixel"], "decode")
    bad |= {"03empty": "caption", "08nocaption": "caption", "09large": "decode"}
    return tiny.write_tar(folder / "mixed.tar", members), bad


def test_bad_rows_become_errors_with_stage_and_reason(backbone: Backbone, tmp_path: Path) -> None:
    path, bad = mixed_shard(tmp_path)
    config = ExtractionConfig(draws=1, batch_size=3, max_pixels=100_000)
    store, (record,) = extract(backbone, tmp_path / "store", [path], config)
    kept = store.read(store.parts()[0]).column("key").to_pylist()
    errors = {row["key"]: row for row in store.errors().to_pylist()}
    assert kept == ["00good", "07grey"]
    assert {key: row["stage"] for key, row in errors.items()} == bad
    assert (record.rows, record.errors) == (2, 8) == (len(kept), store.errors().num_rows)
    assert record.failed == {"decode ImageError": 6, "caption CaptionError": 2}
    assert {row["source"] for row in errors.values()} == {path}
    for key, error, message in [
        ("01corrupt", "ImageError", "truncated"),
        ("02text", "ImageError", "not a picture"),
        ("03empty", "CaptionError", "no caption"),
        ("04nothing", "ImageError", "has no picture"),
        ("09large", "ImageError", "too large"),
    ]:
        assert errors[key]["error"] == error and message in errors[key]["message"]


def test_damaged_shards(backbone: Backbone, tmp_path: Path) -> None:
    (path,) = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=6)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    empty = tiny.write_tar(tmp_path / "empty.tar", [])
    missing = str(tmp_path / "missing.tar")
    store, records = extract(backbone, tmp_path / "store", [path, empty, missing])
    assert 0 < records[0].rows < 6
    assert [(r.rows, r.errors) for r in records[1:]] == [(0, 1), (0, 1)]
    rows = {row["source"]: row for row in store.errors().to_pylist()}
    assert {(row["key"], row["stage"]) for row in rows.values()} == {("", "read")}
    for source, message in [(path, "damaged"), (empty, "empty"), (missing, "does not exist")]:
        assert message in rows[source]["message"]
    # The same damaged file is not read again; fetched anew, it is.
    _, (again,) = extract(backbone, tmp_path / "store", [path])
    assert again.skipped
    Path(path).write_bytes(whole)
    store, (redone,) = extract(backbone, tmp_path / "store", [path])
    assert (redone.skipped, redone.rows, redone.errors) == (False, 6, 0)
    assert path not in {row["source"] for row in store.errors().to_pylist()}


def test_another_shard_of_the_same_name_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    (path,) = tiny.tiny_shards(tmp_path / "a", shards=1, rows=2)
    store, _ = extract(backbone, tmp_path / "store", [path])
    (moved,) = tiny.tiny_shards(tmp_path / "b", shards=1, rows=2)
    assert extract(backbone, tmp_path / "store", [moved])[1][0].skipped  # the same, elsewhere
    content = Path(moved).read_bytes()
    other = content.replace(b"000000001", b"000000009")
    assert len(other) == len(content)
    for changed in (other, content + b"\0" * 512):
        Path(moved).write_bytes(changed)
        with pytest.raises(FeatureStoreError, match="the same name but other content"):
            extract(backbone, tmp_path / "store", [moved])
    assert len(store.parts()) == 1


def test_another_configuration_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    create(backbone, tmp_path)
    with pytest.raises(FeatureStoreError, match=r"extraction\.draws: 3 here, 2 asked"):
        create(backbone, tmp_path, ExtractionConfig(draws=2, seed=5))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["backbone_digest"] == backbone.digest()
    assert manifest["layers"] == {n: list(s) for n, s in backbone.shapes.items()}


def test_batches_and_threads_change_nothing(backbone: Backbone, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=7)
    results = []
    for size, threads in ((7, 1), (1, 3), (3, 2)):
        config = ExtractionConfig(draws=3, batch_size=size, seed=5)
        store = create(backbone, tmp_path / f"store{size}", config)
        Extractor(backbone, open_source(shards[0]), store, threads=threads)(tar(shards[0]))
        results.append(tensors(store))
    for other in results[1:]:
        for name, values in results[0].items():
            np.testing.assert_allclose(
                other[name].astype(np.float32), values.astype(np.float32), rtol=2e-3, atol=2e-3
            )


def test_maps_are_kept_whole(backbone: Backbone, tmp_path: Path) -> None:
    shards = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=2)
    pooled, _ = extract(backbone, tmp_path / "pooled", shards)
    maps, _ = extract(backbone, tmp_path / "maps", shards, ExtractionConfig(mode="maps"))
    for layer, shape in backbone.shapes.items():
        stored = tensors(maps)[f"feature.{layer}"].astype(np.float32)
        assert stored.shape == (2, *shape)
        clean = tensors(pooled)[f"feature.{layer}"][:, 0].astype(np.float32)
        np.testing.assert_allclose(stored.mean(axis=(2, 3)), clean, rtol=3e-3, atol=3e-3)


def test_class_tokens(tmp_path: Path) -> None:
    vit = load_backbone(tiny.tiny_backbone_weights(tmp_path, "test_vit"))
    shards = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=2)
    store, _ = extract(vit, tmp_path / "store", shards)
    caption = store.read(store.parts()[0]).column("captions")[1][0].as_py()
    image = open_image(tiny.encoded(tiny.picture(caption, seed=1)))
    with torch.inference_mode():
        token = vit(vit.transform(image)[None])["blocks.5"].class_token
    assert token is not None
    stored = tensors(store)["class_token.blocks.5"][1].astype(np.float32)
    np.testing.assert_allclose(stored, token[0].numpy(), rtol=3e-3, atol=3e-3)


def test_features_that_are_not_finite_become_errors(tmp_path: Path) -> None:
    backbone = load_backbone(tiny.tiny_backbone_weights(tmp_path))
    (shard,) = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=4)
    module = backbone.module.get_submodule("layer3")
    value = iter([float("nan"), 1e6])

    def spoil(module: object, arguments: object, output: torch.Tensor) -> torch.Tensor:
        output[1] = next(value)  # too large for float16 is as bad as NaN
        return output

    module.register_forward_hook(spoil, prepend=True)
    store, (record,) = extract(
        backbone, tmp_path / "store", [shard], ExtractionConfig(draws=1, batch_size=2)
    )
    assert (record.rows, record.errors) == (2, 2)
    assert store.read(store.parts()[0]).column("key").to_pylist() == ["000000000", "000000002"]
    rows = store.errors().to_pylist()
    assert [r["key"] for r in rows] == ["000000001", "000000003"]
    assert {(r["stage"], r["message"]) for r in rows} == {
        ("backbone", "features are not finite in float16")
    }
    assert all(np.isfinite(v).all() for v in tensors(store).values())


def test_remote_folders(backbone: Backbone, tmp_path: Path) -> None:
    (local,) = tiny.tiny_shards(tmp_path, shards=1, rows=2)
    fsspec.filesystem("memory").pipe("/remote/00000.tar", Path(local).read_bytes())
    store, _ = extract(backbone, "memory://remote/store", ["memory://remote/00000.tar"])
    _, (again,) = extract(backbone, "memory://remote/store", ["memory://remote/00000.tar"])
    assert again.skipped
    here, _ = extract(backbone, tmp_path / "store", [local])
    for name, values in tensors(here).items():
        assert np.array_equal(tensors(store)[name], values)


def test_a_shard_that_grows_while_it_is_read_is_read_again(
    backbone: Backbone, tmp_path: Path
) -> None:
    (path,) = tiny.tiny_shards(tmp_path / "shards", shards=1, rows=6)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])

    class Growing(Tars):
        """Its tar is still being fetched, and whole when reading comes to its end."""

        def read(self, shard: Shard) -> Iterator[Sample | Failure]:
            try:
                yield from super().read(shard)
            finally:
                Path(path).write_bytes(whole)

    store = create(backbone, tmp_path / "store")
    record = Extractor(backbone, Growing(path, SourceConfig()), store, threads=1)(tar(path))
    assert record.rows < 6
    messages = [row["message"] for row in store.errors().to_pylist()]
    assert "has changed while it was read" in messages[-1]
    _, (again,) = extract(backbone, tmp_path / "store", [path])
    assert (again.skipped, again.rows, again.errors) == (False, 6, 0)


def test_a_picture_that_pillow_fails_on_is_an_error_row(backbone: Backbone, tmp_path: Path) -> None:
    good = tiny.encoded(tiny.picture(tiny.CAPTIONS[0]))
    members = tiny.sample_members("bomb", ["x"], tiny.text_bomb())
    path = tiny.write_tar(tmp_path / "s.tar", [*members, *tiny.sample_members("good", ["x"], good)])
    store, (record,) = extract(backbone, tmp_path / "store", [path])
    assert (record.rows, record.errors) == (1, 1)
    (row,) = store.errors().to_pylist()
    assert (row["key"], row["stage"], row["error"]) == ("bomb", "decode", "ImageError")
