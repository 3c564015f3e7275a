"""A feature store's manifest: what its rows are, and how they were made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from devil.backbones.base import Backbone
from devil.config import BackboneConfig, ExtractionConfig, from_dict, to_dict
from devil.errors import ConfigError, FeatureStoreError
from devil.translator import class_slot
from devil.types import LayerShape

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store holds, and how it was made."""

    backbone: BackboneConfig
    backbone_digest: str
    transform: Mapping[str, Any]
    layers: Mapping[str, LayerShape]
    class_tokens: bool
    extraction: ExtractionConfig
    dtype: str = "float16"
    rows: int = 0
    errors: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(
        cls, backbone: Backbone, config: BackboneConfig, extraction: ExtractionConfig
    ) -> "Manifest":
        """The manifest of a store that `backbone` will fill."""
        return cls(
            backbone=config,
            backbone_digest=backbone.digest(),
            transform=json.loads(json.dumps(asdict(backbone.transform))),
            layers=backbone.shapes,
            class_tokens=backbone.has_class_token,
            extraction=extraction,
            versions=package_versions(),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = dict(self.__dict__)
        values["backbone"] = to_dict(self.backbone)
        values["extraction"] = to_dict(self.extraction)
        values["layers"] = {name: list(shape) for name, shape in self.layers.items()}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> "Manifest":
        """Read back `to_dict`'s output.

        Raises:
            FeatureStoreError: another format version, or a key is missing or unknown.
        """
        found = values.get("format_version") if isinstance(values, Mapping) else None
        if found != FORMAT_VERSION:
            raise FeatureStoreError(
                f"{source} has format version {found!r}; this version of devil reads "
                f"{FORMAT_VERSION}."
            )
        try:
            known = dict(values)
            known["backbone"] = from_dict(BackboneConfig, known["backbone"])
            known["extraction"] = from_dict(ExtractionConfig, known["extraction"])
            known["layers"] = {n: LayerShape(*shape) for n, shape in known["layers"].items()}
            return cls(**known)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise FeatureStoreError(f"{source} is no manifest: {error}.") from error

    def differences(self, other: "Manifest") -> list[str]:
        """What would make rows of the two incomparable, one line for each field."""
        mine, theirs = (_identity(m.to_dict()) for m in (self, other))
        return [
            f"{name}: {mine.get(name)!r} here, {theirs.get(name)!r} asked"
            for name in sorted(mine | theirs)
            if mine.get(name) != theirs.get(name)
        ]

    def slots(self) -> tuple[str, ...]:
        """Translator slots that the store can feed."""
        extra = tuple(class_slot(layer) for layer in self.layers if self.class_tokens)
        return (*self.layers, *extra)


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide what a row holds; where weights lay and batches do not."""
    flat = {k: values[k] for k in ("backbone_digest", "transform", "layers", "dtype")}
    flat["class_tokens"] = values["class_tokens"]
    flat["backbone name"] = values["backbone"]["name"]
    for name in ("mode", "draws", "feature_dropout", "seed", "max_pixels"):
        flat[f"extraction.{name}"] = values["extraction"][name]
    return json.loads(json.dumps(flat))


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what features are."""
    from importlib.metadata import version

    from devil import __version__  # this code need not be installed: jobs bring their own

    names = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "pyarrow")
    return {"devil": __version__} | {name: version(name) for name in names}
