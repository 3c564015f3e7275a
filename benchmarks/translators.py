"""The translators that the evaluation compares with the model of `real_photos`.

Each sees 32,000 captions and has no class tokens, so that one thing at a time differs: the dropouts
(DeViL, Table 2), ClipCap's mapping network in place of DeViL's, and a backbone without training.
"""

from dataclasses import replace
from pathlib import Path

from benchmarks.real_photos import DECODING, extract_options, train_options
from pipelines.extract import ExtractOptions
from pipelines.protocols.ablation import AblationOptions

STEPS = 400
"""Of 16 photos with five captions each."""
RANDOM = "random_backbone"
"""Folder of the features of a backbone with random weights."""


def ablation_options(data: Path, output: Path) -> AblationOptions:
    """The trainings, without validation: all photos of the training split are trained on."""
    main = train_options(data, output)
    return AblationOptions(
        store=str(output / "features" / "train"),
        held_out=str(output / "features" / "val"),
        output=str(output / "translators"),
        language_model=main.language_model,
        translator=replace(main.translator, class_tokens=False),
        training=replace(main.training, steps=STEPS, warmup_steps=100, validation_rows=0),
        random=(str(output / RANDOM / "train"), str(output / RANDOM / "val")),
        decoding=DECODING,
        cpus_per_worker=1,
    )


def random_features(data: Path, output: Path, split: str) -> ExtractOptions:
    """Features of one split from the same architecture with random weights."""
    options = extract_options(data, output, split)
    return replace(
        options,
        store=str(output / RANDOM / split),
        backbone=replace(options.backbone, weights="random"),
    )
