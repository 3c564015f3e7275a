"""DeViL: plain-language captions and saliency for every layer and location of a vision model.

Reading order: `backbones` → `pooling` → `features` → `translator` → `language_model` → `model` →
`cache`, `memory`, `prefill` → `decoding`, `sampling`, `saliency`, `vocabulary` →
`picture_features`, `question` → `draft` → `reading`, `describing` → `explanation` → `report`.

Public names are imported when they are first used, so that reading an `Explanation` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from devil.sampling import sample_captions
    from devil.translator import Translator
    from devil.vocabulary import VocabularyMaps

__version__ = "0.1.0"

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
    "VocabularyMaps",
    "load_backbone",
    "load_language_model",
    "sample_captions",
]

_HOMES = {
    "backbones": ("Backbone", "load_backbone"),
    "config": tuple(name for name in __all__ if name.endswith("Config")),
    "errors": ("DevilError",),
    "explanation": ("Caption", "Explanation", "LayerExplanation"),
    "language_model": ("LanguageModel", "load_language_model"),
    "model": ("DeViL",),
    "sampling": ("sample_captions",),
    "translator": ("Translator",),
    "vocabulary": ("VocabularyMaps",),
}


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first asked for."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"devil.{module}"), name)
    raise AttributeError(f"module 'devil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
