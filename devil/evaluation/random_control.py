"""The control of an explained network that never learned: another model, for random weights.

Its translator was trained, on the same captions, for a backbone of the same architecture with
random weights (`--backbone.weights random`). What it says of a picture as well as the model does
comes from the pixels, the architecture and the language model, not from what the network learned.
"""

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
        ConfigError: it explains a backbone with learned weights, or another architecture, or lacks
            a layer.
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
    shapes = {layer: tuple(control.shapes.get(layer, ())) for layer in model.layers}
    if theirs.name != ours.name or any(
        tuple(model.shapes[layer]) != shape for layer, shape in shapes.items()
    ):
        raise ConfigError(
            f"{name} explains {theirs.name} with layers {', '.join(control.layers)}, not "
            f"{ours.name} with {', '.join(model.layers)} at the same input size; train it for the "
            "model's own backbone and layers."
        )
    return control
