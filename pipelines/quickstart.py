"""The embedded default, end to end: drawn scenes through the true pipeline, in minutes.

    python pipelines/quickstart.py

Draws captioned scenes, trains a small backbone and a small language model on them, then runs what
any user runs: shards → extract → train → audit. Ends in `runs/demo/report/index.html` and
`runs/demo/results.json`. Because the objects' masks are known, each figure stands beside a control.
"""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from devil.audit import AuditConfig
from devil.config import (
    BackboneConfig,
    DecodingConfig,
    ExtractionConfig,
    LanguageModelConfig,
    TrainingConfig,
    TranslatorConfig,
)
from devil.data.embedded import BACKBONE, train_backbone, train_language_model
from devil.data.scenes import (
    Scene,
    SceneConfig,
    scene_captions,
    scenes,
    with_article,
    write_scene_shards,
)
from devil.evaluation.pointing import PointingScore
from devil.evaluation.scenes import (
    LocationAccuracy,
    NameMap,
    best_layer,
    location_accuracy,
    name_maps,
    pointing_game,
)
from devil.files import write_json
from devil.model import DeViL
from devil.report.page import write_report
from devil.report.table import ReportTable
from pipelines.audit import AuditOptions, audit, audited
from pipelines.cli import run_script
from pipelines.extract import ExtractOptions, extract
from pipelines.pool import PoolConfig
from pipelines.train import TrainOptions, train

logger = logging.getLogger("quickstart")

WRITTEN = (
    "backbone.safetensors",
    "language_model",
    "shards",
    "features",
    "model",
    "training",
    "test",
    "report",
    "results.json",
)
"""What a demo leaves in its folder."""
LAYERS = ("layer2", "layer3", "layer4")
QUERIES = ("red", "blue", "star", "heart", "fish", "green circle")
POOL = PoolConfig(workers=2, cpus_per_worker=1)
"""Models this small gain nothing from a second thread, but everything from a second worker."""
PROMPT = "a picture of"
"""Text before "an orange fish", as captions have it; conditioned on, not scored."""
NEIGHBOURS = 0.25
"""Weight of a location's neighbours in the maps of the pointing game; chosen on other scenes."""
TRAIN_SCENES = SceneConfig(max_objects=2)
"""What the translator is trained on; it is tested on scenes of up to four objects."""
SHOWN = 24
"""Scenes in the report."""
AUDIT_LAYERS = ("layer3", "layer4", "all")
TRAIN_SEED, CHOICE_SEED, TEST_SEED, EXAMPLE_SEED = 1, 2, 3, 4
"""Seeds of the scenes trained on, those a layer is chosen on, those reported, and one to show."""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """Options of the embedded default."""

    output: str = "runs/demo"
    """Folder of everything that it writes; what an older demo wrote there is replaced."""
    scenes: int = 3000
    """Scenes to train on."""
    backbone_steps: int = 1000
    """Steps of the backbone's training."""
    language_model_steps: int = 400
    """Steps of the language model's training."""
    training_steps: int = 1000
    """Steps of the translator's training."""
    test_scenes: int = 100
    """Scenes to measure on, none of them trained on."""
    seed: int = 0
    """Seed of all training."""


@dataclass(frozen=True)
class Measured:
    """What was measured on scenes that were never trained on."""

    locations: Mapping[str, LocationAccuracy]
    pointing: Mapping[str, PointingScore]
    """With each location's neighbours blended in."""
    pointing_raw: Mapping[str, PointingScore]
    """Without."""
    location_layer: str
    pointing_layer: str


def quickstart(options: QuickstartOptions) -> dict[str, Any]:
    """Run everything; returns what `results.json` holds."""
    torch.manual_seed(options.seed)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:  # of an older demo, finished or not: the times are of one run
        if (output / name).is_dir():
            shutil.rmtree(output / name)
        else:
            (output / name).unlink(missing_ok=True)
    seconds: dict[str, float] = {}
    with _timed("backbone", seconds):
        train_backbone(
            scenes(options.scenes, seed=TRAIN_SEED),
            output / "backbone.safetensors",
            seed=options.seed,
            steps=options.backbone_steps,
        )
    with _timed("language_model", seconds):
        train_language_model(
            scene_captions(options.scenes, seed=TRAIN_SEED),
            output / "language_model",
            seed=options.seed,
            steps=options.language_model_steps,
        )
    with _timed("shards", seconds):
        write_scene_shards(
            output / "shards", options.scenes, TRAIN_SEED, shard_size=500, config=TRAIN_SCENES
        )
        write_scene_shards(output / "test", SHOWN, TEST_SEED, shard_size=SHOWN // 2)
    with _timed("extract", seconds):
        extract(extract_options(output))
    with _timed("train", seconds):
        train(train_options(output, options))
    with _timed("evaluate", seconds):
        model = DeViL.from_pretrained(output / "model")
        measured = measure(model, options.test_scenes)
    with _timed("audit", seconds):
        request = audit_options(output)
        audit(request)
    results = summarise(measured, model.summary["scores"], seconds)
    write_json(output / "results.json", results)
    tables = result_tables(measured, results)
    write_report(
        output / "report",
        title="DeViL on drawn scenes",
        introduction=INTRODUCTION,
        tables=tables,
        explanations=list(audited(request)),
        notes=NOTES,
    )
    write_example(model, output / "report" / "example.png")
    _print(tables, results, output)
    return results


def write_example(model: DeViL, path: Path) -> None:
    """One unseen scene with several objects, explained: a picture to show."""
    scene = next(s for s in scenes(100, seed=EXAMPLE_SEED) if len(s.objects) == 3)
    model.explain(
        scene.image,
        layers=AUDIT_LAYERS,
        queries=[with_article(item.name) for item in scene.objects],
        prompt=PROMPT,
        decoding=DecodingConfig(max_new_tokens=30),
    ).to_png(path)


INTRODUCTION = (
    "A small backbone learned to tell what is in drawn scenes, a small language model learned how "
    "captions read, and a translator learned to join the two. Point at a location: the caption "
    "says what the layer holds there. None of these scenes was trained on."
)
NOTES = [
    "A location counts as right when its caption names the colour and the kind of the object that "
    "covers at least half of it. The control reads the same location of another picture.",
    "For the pointing game each location is blended with its neighbours (weights 4 : 1).",
    "results.json names the best layer for each; it was chosen on other scenes than these.",
    "The backbone's training saw where objects are (a throw-away classifier at each location); the "
    "translator's saw pooled features and whole captions only.",
]


def extract_options(output: Path) -> ExtractOptions:
    """Extraction as the demo runs it."""
    return ExtractOptions(
        shards=str(output / "shards"),
        store=str(output / "features"),
        backbone=BackboneConfig(
            name=f"timm:{BACKBONE}", weights=str(output / "backbone.safetensors"), layers=LAYERS
        ),
        # Draws of a few locations resemble the single locations that are described later; with half
        # of them averaged, the translator never learns what bare background looks like.
        extraction=ExtractionConfig(draws=8, feature_dropout=0.9),
        pool=POOL,
    )


def train_options(output: Path, options: QuickstartOptions) -> TrainOptions:
    """Training as the demo runs it."""
    steps = options.training_steps
    return TrainOptions(
        store=str(output / "features"),
        output=str(output),
        language_model=LanguageModelConfig(name=str(output / "language_model")),
        translator=TranslatorConfig(width=256, depth=1, heads=8, feedforward=1024),
        training=TrainingConfig(
            steps=steps,
            batch_size=32,
            captions_per_image=2,
            learning_rate=1e-3,
            warmup_steps=100,
            weight_decay=1e-4,
            token_dropout=0.25,
            validation_rows=200,
            validate_every=max(1, steps // 2),
            checkpoint_every=max(1, steps // 2),
            log_every=100,
            seed=options.seed,
        ),
        name="devil-demo",
        workers=POOL.workers,
        cpus_per_worker=POOL.cpus_per_worker,
    )


def audit_options(output: Path) -> AuditOptions:
    """The audit of the demo: scenes that were never trained on."""
    return AuditOptions(
        model=str(output / "model"),
        images=str(output / "test"),
        output=str(output / "report"),
        audit=AuditConfig(queries=QUERIES, layers=AUDIT_LAYERS, prompt=f"{PROMPT} a"),
        decoding=DecodingConfig(max_new_tokens=30),
        pool=POOL,
        report_images=SHOWN,
    )


def measure(model: DeViL, count: int) -> Measured:
    """Location captions and the pointing game, on unseen scenes."""
    layers = (*LAYERS[1:], "all")
    choice = list(scenes(max(20, count // 4), seed=CHOICE_SEED))
    test = list(scenes(count, seed=TEST_SEED))
    location_layer = best_layer({n: location_accuracy(model, choice, n) for n in layers})
    pointing = {n: _pointing(_maps(model, choice, n)).hits for n in layers}
    maps = {n: _maps(model, test, n) for n in layers}
    return Measured(
        locations={n: location_accuracy(model, test, n) for n in layers},
        pointing={n: _pointing(m) for n, m in maps.items()},
        pointing_raw={n: pointing_game(m) for n, m in maps.items()},
        location_layer=location_layer,
        pointing_layer=max(pointing, key=lambda layer: pointing[layer]),
    )


def _maps(model: DeViL, test: list[Scene], layer: str) -> list[NameMap]:
    return name_maps(model, test, layer, prompt=PROMPT)


def _pointing(maps: list[NameMap]) -> PointingScore:
    return pointing_game(maps, neighbours=NEIGHBOURS)


def summarise(
    measured: Measured, scores: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The content of `results.json`."""
    best = measured.locations[measured.location_layer]
    pointing = measured.pointing[measured.pointing_layer]
    cider = {
        name.removeprefix("cider_"): value
        for name, value in scores.items()
        if name.startswith("cider_") and name != "cider_shuffled"
    }
    return {
        "location_accuracy": best.accuracy,
        "location_accuracy_shuffled": best.shuffled,
        "location_layer": measured.location_layer,
        "location_accuracy_by_layer": {
            layer: dataclasses.asdict(score) for layer, score in measured.locations.items()
        },
        "pointing_game": pointing.hits,
        "pointing_game_raw": measured.pointing_raw[measured.pointing_layer].hits,
        "pointing_game_chance": pointing.chance,
        "pointing_layer": measured.pointing_layer,
        "pointing_game_by_layer": {n: s._asdict() for n, s in measured.pointing.items()},
        "cider": cider,
        "cider_shuffled": scores["cider_shuffled"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def result_tables(measured: Measured, results: Mapping[str, Any]) -> list[ReportTable]:
    """The tables of the report and the terminal."""
    locations = ReportTable(
        title="Captions of locations",
        caption="Share of object locations whose caption names the object's colour and kind",
        columns=("layer", "right", "control: another picture", "locations"),
        rows=tuple(
            (layer, s.accuracy, s.shuffled, s.locations) for layer, s in measured.locations.items()
        ),
    )
    pointing = ReportTable(
        title="Pointing game",
        caption="Share of maps for an object's name that peak on the object",
        columns=("layer", "hits", "hits without blending", "chance", "maps"),
        rows=tuple(
            (layer, s.hits, measured.pointing_raw[layer].hits, s.chance, s.maps)
            for layer, s in measured.pointing.items()
        ),
    )
    captions = ReportTable(
        title="Captions of pictures",
        caption="CIDEr on held-out scenes against five captions each",
        columns=("layer", "CIDEr"),
        rows=(
            *results["cider"].items(),
            ("control: another picture", results["cider_shuffled"]),
        ),
    )
    return [locations, pointing, captions]


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    logger.info("%s ...", stage)
    yield
    seconds[stage] = time.perf_counter() - started
    logger.info("%s took %.0f s", stage, seconds[stage])


def _print(tables: list[ReportTable], results: Mapping[str, Any], output: Path) -> None:
    for table in tables:
        print("\n" + table.text())
    total = sum(results["seconds"].values())
    print(f"\nDone in {total / 60:.1f} minutes. Look at {output}/report/index.html, then:")
    print(f"  your own pictures   .venv/bin/python pipelines/audit.py {output}/model PHOTOS \\")
    print("                        --output runs/audit --audit.queries 'red star' fish \\")
    print(f"                        --audit.prompt '{PROMPT} a'")
    print("  answers over HTTP   make serve")


if __name__ == "__main__":
    run_script(QuickstartOptions, quickstart, __doc__ or "")
