"""Trains the two frozen models of the embedded default on drawn scenes: a backbone and an LM.

Neither sees a caption together with a picture: joining the two is the translator's work.
Reading order: `views` (scenes as the backbone sees them), `fitting` (what both trainings share),
`backbone`, `language_model`.
"""

from devil.data.embedded.backbone import BACKBONE, LAYERS, BackboneReport, train_backbone
from devil.data.embedded.language_model import LanguageModelReport, train_language_model
from devil.data.embedded.views import Labels

__all__ = [
    "BACKBONE",
    "LAYERS",
    "BackboneReport",
    "Labels",
    "LanguageModelReport",
    "train_backbone",
    "train_language_model",
]
