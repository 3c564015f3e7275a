"""The control of an explained network that never learned: another model, for random weights.

Its translator was trained for a backbone of the same architecture with random weights
(`--backbone.weights random`). What it says of a picture as well as the model does comes from the
pixels, the architecture and the language model, not from what the network learned, if both
translators saw as many captions: that number stands beside the figures.
"""

from collections.abc import Mapping
from typing import Any

import torch

from devil.errors import ConfigError
from devil.model import DeViL

RANDOM_BACKBONE = "random backbone"
"""Names the control in tables."""


def load_random_control(
    name: str, model: DeViL, *, device: str | torch.device = "cpu"
) -> DeViL | None:
    """The control of a model, checked; None where no name is given.

    Args:
        name: model folder or hub id of the control, or empty.
        model: the model that is measured.
        device: where the control goes.

    Raises:
        ConfigError: it explains a backbone with learned weights, or another architecture, or
            has other layers.
        ModelFolderError: it cannot be loaded.
    """
    if not name:
        return None
    control = DeViL.from_pretrained(name, device=device)
    ours, theirs = model.backbone_config, control.backbone_config
    if theirs.weights != "random":
        raise ConfigError(
            f"{name} explains {theirs.name} with weights {theirs.weights}; the control needs a "
            "model that was trained on features of --backbone.weights random."
        )
    same = control.layers == model.layers and all(
        tuple(control.shapes[layer]) == tuple(model.shapes[layer]) for layer in model.layers
    )
    if theirs.name != ours.name or not same:
        raise ConfigError(
            f"{name} explains {theirs.name} with layers {', '.join(control.layers)}, not "
            f"{ours.name} with {', '.join(model.layers)} at the same input size; train it for the "
            "model's own backbone and layers."
        )
    return control


def measured(model: DeViL, control: DeViL | None) -> dict[str, dict[str, Any]]:
    """Which models a results file is about: `model`, and `random_control` where there is one."""
    found = {"model": model} | ({} if control is None else {"random_control": control})
    return {
        which: {
            "name": each.name,
            "version": each.version,
            "captions_seen": each.summary.get("captions_seen"),
        }
        for which, each in found.items()
    }


def control_note(document: Mapping[str, Any]) -> str:
    """For the end of a table's caption: how long the control of a `measured` document was trained.

    Empty where there is no control.
    """
    if "random_control" not in document:
        return ""
    seen = (document[which]["captions_seen"] for which in ("random_control", "model"))
    theirs, ours = (f"{number:,}" if number else "an unknown number of" for number in seen)
    return f"; the {RANDOM_BACKBONE}'s translator saw {theirs} captions, the model's {ours}"
