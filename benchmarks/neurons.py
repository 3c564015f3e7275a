"""Descriptions of units on two stand-ins for what cannot be shipped: the protocol run for real.

*Rendered units*: 240 units whose meaning is known, in the published layout, described through an
ImageNet ViT-Ti/16 and a small GPT-2; the whole protocol, within one source. *Real annotations*:
the 3,904 units of ResNet-152 on ImageNet, without images: what constants, copied descriptions and
people score. *Random backbone*: the rendered units through the same ViT with random weights, the
control.
"""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.real_photos import extract_options, train_options
from devil.config import TrainingConfig, TranslatorConfig
from devil.data.milan import ANNOTATIONS
from devil.data.rendered_units import RenderedUnitsConfig, write_rendered_units
from devil.evaluation.captioning import QUICK
from pipelines.pool import PoolConfig
from pipelines.protocols.neurons import NeuronsOptions
from pipelines.runs import claim_run

RENDERED, REAL = "rendered/scenes", "resnet152/imagenet"
UNITS = RenderedUnitsConfig(units=240, image_size=128)


def neuron_requests(data: Path, output: Path) -> dict[str, NeuronsOptions]:
    """Write the units, unless they are there, and name the runs of the protocol."""
    units = output / "data"
    claim_run(output / "units.json", asdict(UNITS))
    if not (units / RENDERED / ANNOTATIONS).is_file():
        write_rendered_units(units, RENDERED, UNITS)
    (units / REAL).mkdir(parents=True, exist_ok=True)
    annotations = data / "milan" / "resnet152-imagenet-annotations.csv"
    shutil.copyfile(annotations, units / REAL / ANNOTATIONS)
    common: dict[str, Any] = {"root": str(units), "metrics": (*QUICK, "meteor")}
    rendered = NeuronsOptions(
        experiment=RENDERED,
        output=str(output / "rendered"),
        backbone=extract_options(data, output, "train").backbone,
        language_model=train_options(data, output).language_model,
        translator=TranslatorConfig(width=256, depth=1, heads=8, feedforward=1024),
        training=TrainingConfig(
            steps=600,
            batch_size=32,
            learning_rate=1e-3,
            warmup_steps=30,
            weight_decay=1e-2,
            token_dropout=0.25,
            max_caption_tokens=40,
            validate_every=25,
        ),
        test_share=0.25,
        chunk=24,
        pool=PoolConfig(workers=1, cpus_per_worker=1),
        **common,
    )
    real = NeuronsOptions(experiment=REAL, output=str(output / "real"), text_only=True, **common)
    untrained = replace(
        rendered,
        output=str(output / "random"),
        backbone=replace(rendered.backbone, weights="random"),
    )
    return {"rendered_units": rendered, "random_backbone": untrained, "real_annotations": real}
