"""The speed benchmark on tiny models: what it compares, counts and keeps."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, measured
from benchmarks.roofline import Phase, Rates, decoding, roofline, tokens_behind, translation
from benchmarks.speed import SpeedOptions, kept, speed, table
from benchmarks.speed_models import Explained, caption_lengths, in_dtype, location_statistics
from benchmarks.speed_tasks import (
    dense_case,
    queries_of_lengths,
    saliency_case,
    samples_case,
    stopping_case,
    vocabulary_case,
)
from benchmarks.speed_training import extraction_case, training_case
from benchmarks.timing import Side, median_ratio, paired_seconds
from devil.config import BackboneConfig
from devil.errors import ConfigError
from devil.language_model import short_sequence_attention
from devil.model import DeViL

CPU = torch.device("cpu")
MACHINE = {"processor": "any"}
FIELDS = {
    "task", "model", "device", "dtype", "ours_s", "plain_s", "batched_s", "ratio_plain",
    "ratio_batched", "roofline", "equal", "machine", "setting", "repeats", "compared",
    "plain_measured_share", "batched_measured_share", "plain_dtype", "batched_dtype",
    "load_average", "ours_cpu_s", "plain_cpu_s", "ratio_plain_cpu", "ratio_batched_cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Explained:
    model = tiny.tiny_model(tmp_path_factory.mktemp("model"), family="opt")
    assert model.backbone is not None
    images = torch.randn(1, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(0))
    model.translator.standardise_by(location_statistics(model.backbone, images))
    layers = {shape.locations: layer for layer, shape in model.shapes.items()}
    return Explained("tiny", model, images, layers)


def models(whole: Explained) -> dict[str, DeViL]:
    return {d: in_dtype(whole.model, getattr(torch, d)) for d in ("float32", "bfloat16")}


CASES = ("saliency", "vocabulary", "dense", "stopping", "train", "extract", "samples")


def build(name: str, whole: Explained, folder: Path) -> Case:
    both, locations = models(whole), min(whole.layers)
    if name == "saliency":
        return saliency_case(whole, both, "float32", locations, [1, 3, 2], plain_locations=2)
    if name == "vocabulary":
        return vocabulary_case(whole, both, "float32", locations)
    if name == "dense":
        return dense_case(whole, both, "float32", locations, longest=5, plain_locations=2)
    if name == "train":
        return training_case(whole, ("float32", "bfloat16"), size=6, each=2)
    if name == "extract":
        config = BackboneConfig(name="timm:test_resnet")
        return extraction_case(whole, config, folder, photos=5, plain_photos=2)
    prefix = torch.randn(9, 3, tiny.WIDTH, generator=torch.Generator().manual_seed(2))
    lm = {d: m.language_model for d, m in both.items()}
    if name == "samples":
        options = dict(samples=300, longest=4, batched_samples=200)
        return samples_case("tiny", lm, "float32", prefix[:1], **options)
    return stopping_case("tiny", lm, "float32", prefix, longest=6, plain_rows=4)


@pytest.mark.parametrize("name", CASES)
def test_every_case_compares_times_and_counts(name: str, whole: Explained, tmp_path: Path) -> None:
    case = build(name, whole, tmp_path)
    records = measured(case, repeats=1, device=CPU, machine=MACHINE)
    expected = ["float32"] if name == "extract" else ["float32", "bfloat16"]
    assert [r["dtype"] for r in records] == expected
    for record in records:
        assert set(record) >= FIELDS
        assert record["equal"], record
        assert record["ratio_batched"] > 0
        assert name == "samples" or record["ratio_plain"] > 0
        assert record["roofline"]["flops"] > 0 and record["roofline"]["share"] > 0
        shares = [record["plain_measured_share"] or 1e-9, record["batched_measured_share"]]
        assert 0 < shares[0] <= shares[1] <= 1
    json.dumps(records)
    assert ("one_query_float32_s" in records[0]) == (name == "vocabulary")


def broken(case: Case) -> Case:
    """The engine's result, a little off."""

    def run() -> object:
        result = case.ours["float32"].run()
        if isinstance(result, torch.Tensor):
            return result + 1e-2
        if isinstance(result, list):
            first = dataclasses.replace(result[0], text=result[0].text + " and more")
            return [first, *result[1:]]
        return result._replace(loss=result.loss * 1.01)

    return dataclasses.replace(case, ours={"float32": Side(run=run)})


@pytest.mark.parametrize("name", CASES[:5])
def test_other_results_are_not_timed(name: str, whole: Explained, tmp_path: Path) -> None:
    case = broken(build(name, whole, tmp_path))
    (record,) = measured(case, repeats=1, device=CPU, machine=MACHINE)
    assert record["equal"] is False
    assert [record[f"{n}_s"] for n in ("ours", "plain", "batched")] == [None] * 3
    assert record["ratio_plain"] is record["ratio_batched"] is record["roofline"] is None
    assert "no" in table([record]).text().split()


def test_repeats_are_interleaved_and_parts_scaled() -> None:
    order: list[str] = []
    sides = {
        name: Side(run=lambda name=name: order.append(name), share=share)
        for name, share in (("a", 1.0), ("b", 1e-9))
    }
    seconds = paired_seconds(sides, 3, CPU)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(s.wall) for s in seconds.values()] == [3, 3]
    assert min(seconds["b"].wall) > 10 * max(seconds["a"].wall)
    assert median_ratio([4.0, 9.0, 1.0], [2.0, 3.0, 1.0]) == 2.0


def test_roofline_takes_the_slower_of_the_two() -> None:
    phases = [Phase(flops=100, weights=1), Phase(flops=10, weights=20, values=5)]
    line = roofline(phases, 20.0, Rates(flops=10.0, bytes=25.0), itemsize=2)
    # 10 s of operations, then 2 s of memory.
    assert line["least_s"] == pytest.approx(12.0)
    assert line["share"] == pytest.approx(0.6)
    assert line["share_limited_by_memory"] == pytest.approx(2 / 12)
    assert (line["flops"], line["bytes"]) == (110, 52)


def test_needed_work_is_what_a_pass_without_waste_does(whole: Explained) -> None:
    model = whole.model
    layer = model.layers[0]
    channels = model.shapes[layer].channels
    lm = model.language_model
    with FlopCounterMode(display=False) as counter, short_sequence_attention(CPU):
        prefix = model.translator({layer: torch.randn(4, channels)})
        hidden = lm.hidden(lm.start(prefix), use_cache=False).last_hidden_state
        lm.logits(hidden[:, -1])
    found = translation(model.translator, channels, 4).flops
    found += tokens_behind(lm, 4, 0, prefix.shape[1] + 1, 1).flops
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)
    steps = decoding(lm, 4, [6, 6, 2])
    assert len(steps) == 3 and steps[2].flops == pytest.approx(steps[1].flops / 3, rel=0.05)


def test_captions_are_as_long_as_those_of_cc3m() -> None:
    lengths = caption_lengths(4000)
    assert lengths == caption_lengths(4000) != caption_lengths(4000, seed=1)
    assert sum(lengths) / 4000 == pytest.approx(1.15 * 10.3, rel=0.05)
    assert sorted(len(q.ids) for q in queries_of_lengths([1, 4, 2], 50)) == [1, 2, 4]


def test_figures_stay_but_those_that_a_machine_measures_again(tmp_path: Path) -> None:
    path = tmp_path / "speed-cpu.json"
    one = {"task": "dense", "setting": "a", "model": "m", "device": "cpu", "dtype": "float32"}
    other = {"processor": "other"}
    old = [one | {"machine": MACHINE, "n": 1}, one | {"task": "train", "machine": MACHINE, "n": 2}]
    old.append(one | {"machine": other, "n": 3})
    path.write_text(json.dumps(old))
    assert [r["n"] for r in kept(path, [one | {"machine": MACHINE}])] == [2, 3]
    assert [r["n"] for r in kept(path, [one | {"machine": other}])] == [1, 2]
    assert [r["n"] for r in kept(path, [])] == [1, 2, 3]
    assert kept(tmp_path / "none.json", [one | {"machine": other}]) == []


def test_the_table_names_the_machine(whole: Explained, tmp_path: Path) -> None:
    case = build("stopping", whole, tmp_path)
    machines = [{"processor": name, "gpu": "some GPU"} for name in ("Xeon", "EPYC")]
    records = [measured(case, repeats=1, device=CPU, machine=m)[0] for m in machines]
    text = table([*records, records[0] | {"device": "cuda"}]).text()
    assert all(name in text for name in ("Xeon", "EPYC", "some GPU"))


def test_unknown_models(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\['opt-9000'\] are unknown; there are resnet50"):
        speed(SpeedOptions(models=("opt-9000",), results=str(tmp_path)))
