"""Backbones by name: `LIBRARY:NAME` → a loaded, frozen model.

One loader per library; each knows how that library names, builds, and normalises, and how its
architectures lay out tensors. A name without `weights` fetches the library's own pretrained
weights, if they are not cached; `random` and a path never touch the network.
"""

import importlib
from collections.abc import Callable

import torch

from devil.backbones.base import Backbone, LoadedModel
from devil.config import BackboneConfig
from devil.errors import BackboneError, DevilError

LOADERS: dict[str, str] = {
    "timm": "devil.backbones.timm_models:load_timm",
    "open_clip": "devil.backbones.open_clip_models:load_open_clip",
    "transformers": "devil.backbones.transformers_models:load_transformers",
    "torchvision": "devil.backbones.torchvision_models:load_torchvision",
}
"""Library → its loader. By name, for each library takes seconds to import and one is needed."""


def _loader(library: str) -> Callable[[str, BackboneConfig], LoadedModel]:
    module, _, function = LOADERS[library].partition(":")
    return getattr(importlib.import_module(module), function)


def load_backbone(config: BackboneConfig | str, *, device: torch.device | str = "cpu") -> Backbone:
    """Load a frozen backbone by its configuration, or by its name alone.

    Raises:
        BackboneError: unknown library or model, or weights that cannot be had or do not fit.
        LayerError: a layer does not exist; the message lists the right ones.
    """
    config = BackboneConfig(name=config) if isinstance(config, str) else config
    library, _, name = config.name.partition(":")
    if library not in LOADERS:
        raise BackboneError(
            f"backbone {config.name!r}: unknown library {library!r}; allowed: {sorted(LOADERS)}, "
            "as in timm:resnet50."
        )
    # Models are built on the CPU, so its generator alone is seeded, and given back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        try:
            backbone = Backbone(config.name, _loader(library)(name, config), config.layers)
        except DevilError:
            raise
        except Exception as error:  # hubs, constructors and forward passes raise many kinds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            raise BackboneError(
                f"backbone {config.name!r} with weights {config.weights!r} cannot be loaded "
                f"({reason}). Check the name and image_size, or give weights=PATH of a local "
                "state dict, or weights='random'."
            ) from error
    return backbone.to(device)
