"""DeViL: plain-language captions and saliency for every layer and location of a vision model.

Reading order: `backbones` → `pooling` → `features` → `translator` → `language_model` → `model` →
`decoding`, `saliency`, `describing` → `explanation` → `report`.
"""

from devil.backbones import Backbone, load_backbone
from devil.config import (
    BackboneConfig,
    DecodingConfig,
    ExtractionConfig,
    LanguageModelConfig,
    TrainingConfig,
    TranslatorConfig,
)
from devil.errors import DevilError
from devil.explanation import Caption, Explanation, LayerExplanation
from devil.language_model import LanguageModel, load_language_model
from devil.model import DeViL
from devil.translator import Translator

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Caption",
    "DeViL",
    "DecodingConfig",
    "DevilError",
    "Explanation",
    "ExtractionConfig",
    "LanguageModel",
    "LanguageModelConfig",
    "LayerExplanation",
    "TrainingConfig",
    "Translator",
    "TranslatorConfig",
    "load_backbone",
    "load_language_model",
]

__version__ = "0.1.0"
