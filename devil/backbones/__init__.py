"""Vision backbones by name: frozen models whose named layers come out as feature maps."""

from devil.backbones.base import Backbone
from devil.backbones.layout import LayerOutput
from devil.backbones.registry import LOADERS, load_backbone

__all__ = ["LOADERS", "Backbone", "LayerOutput", "load_backbone"]
