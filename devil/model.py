"""DeViL: a translator between a frozen backbone and a frozen language model.

``features → prefix → text or scores``. This file holds the parts together; saving and loading is in
`folder`, captions in `describing`, maps in `saliency`, and the result type in `explanation`.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from devil.backbones import Backbone
from devil.config import BackboneConfig, DecodingConfig
from devil.errors import LayerError
from devil.explanation import Explanation
from devil.language_model import LanguageModel
from devil.memory import rows_within
from devil.saliency import Calibration
from devil.translator import Translator, slots_of
from devil.types import ALL_LAYERS, LayerShape

if TYPE_CHECKING:
    from devil.vocabulary import VocabularyMaps


class SlotStatistics(NamedTuple):
    """Mean and standard deviation per channel of a slot's pooled features over a training set."""

    mean: Tensor
    std: Tensor


class DeViL(nn.Module):
    """A trained (or untrained) translator with the two frozen models that it joins.

    Attributes:
        translator: the trained part.
        language_model: the frozen LM.
        backbone: the frozen vision model; None where only stored features are used.
        backbone_config: how the backbone is loaded again.
        backbone_digest: digest of the weights it was trained for.
        shapes: each layer's (channels, height, width).
        statistics: per slot, over the training set; the means calibrate saliency.
        summary: what is known of the training: steps, scores, versions.
        name, version: written into explanations.
    """

    def __init__(
        self,
        *,
        translator: Translator,
        language_model: LanguageModel,
        backbone_config: BackboneConfig,
        backbone_digest: str,
        shapes: Mapping[str, LayerShape],
        statistics: Mapping[str, SlotStatistics],
        backbone: Backbone | None = None,
        summary: Mapping[str, Any] | None = None,
        name: str = "devil",
    ) -> None:
        super().__init__()
        self.translator = translator
        self.language_model = language_model
        self.backbone = backbone
        self.backbone_config = backbone_config
        self.backbone_digest = backbone_digest
        self.shapes = dict(shapes)
        self.statistics = dict(statistics)
        self.summary = dict(summary or {})
        self.name = name
        self.version = "untrained"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the explained layers."""
        return self.translator.layers

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.translator.prefix_tokens.device

    def to_precision(self, precision: Literal["float32", "bfloat16", "auto"]) -> "DeViL":
        """Turn translator and language model into a number format, for inference.

        In bfloat16 they are several times as fast where the processor has it (AMX, AVX-512, GPUs),
        and results are not those of float32 to the bit: log-probabilities differ by some
        hundredths of a nat, and a caption may take another turn where two words are nearly as
        likely. The backbone stays as it is.

        Args:
            precision: `auto`: bfloat16 where the processor has it, float32 elsewhere.

        Returns:
            The model itself.

        Raises:
            DevilError: bfloat16 was asked for on a GPU that lacks it.
        """
        from devil.training import autocast_dtype

        dtype = autocast_dtype(precision, self.device) or torch.float32
        self.translator.set_dtype(dtype)
        self.language_model.set_dtype(dtype)
        return self

    def chosen_layers(self, layers: Sequence[str] | str | None) -> tuple[str, ...]:
        """Check layer names; None asks for each layer, then all of them at once.

        Raises:
            LayerError: the model was not trained for a layer; lists those it was.
        """
        allowed = (*self.layers, ALL_LAYERS)
        layers = (layers,) if isinstance(layers, str) else layers
        chosen = allowed if layers is None else tuple(layers)
        unknown = [layer for layer in chosen if layer not in allowed]
        if unknown or not chosen:
            raise LayerError(
                f"the model was not trained for {unknown or 'no layer'}; its layers: "
                f"{', '.join(allowed)}."
            )
        return chosen

    def slots(self, layer: str) -> tuple[str, ...]:
        """Slots that stand for a pooled layer, or for `all` layers."""
        layers = self.layers if layer == ALL_LAYERS else (layer,)
        return slots_of(layers, class_tokens=self.translator.config.class_tokens)

    def prefix(
        self,
        features: Mapping[str, Float[Tensor, "batch channels"]],
        batch_size: int = 1024,
        *,
        memory_gb: float | None = None,
    ) -> Float[Tensor, "batch prefix hidden"]:
        """Prefix embeddings of feature vectors by slot, without gradients, in batches.

        Args:
            features: one vector for each row and slot.
            batch_size: rows at once, at most.
            memory_gb: memory for a batch, in 10⁹ bytes; None: half of what is free.
        """
        count = next(iter(features.values())).shape[0] if features else 0
        tokens = self.translator.tokens(features)
        each = self.translator.bytes_per_token * tokens
        size = min(batch_size, rows_within(self.device, memory_gb, each, tokens))
        with torch.inference_mode():
            moved = {slot: vectors.to(self.device) for slot, vectors in features.items()}
            parts = [
                self.translator({s: v[i : i + size] for s, v in moved.items()})
                for i in range(0, max(count, 1), size)
            ]
        return torch.cat(parts)

    def mean_features(self, slots: Sequence[str]) -> dict[str, Float[Tensor, "1 channels"]]:
        """The training set's mean feature of some slots, as one row."""
        return {slot: self.statistics[slot].mean[None].to(self.device) for slot in slots}

    def explain(
        self,
        image: str | PathLike[str] | bytes | Image.Image,
        *,
        layers: Sequence[str] | str | None = None,
        queries: Sequence[str] | str = (),
        dense: bool | None = None,
        points: Sequence[tuple[float, float]] = (),
        words: int = 0,
        captions: bool = True,
        calibration: Calibration = "pmi",
        prompt: str = "",
        smoothing: int = 1,
        decoding: DecodingConfig | None = None,
    ) -> Explanation:
        """Explain one picture: captions of layers and locations, and a map for each query.

        Args:
            image: a path, the bytes of a file, or a picture.
            layers: names out of `layers`, and `all` for all at once; None asks for everything.
            queries: words or phrases; each gets a map per layer.
            dense: tell of every location; None: unless `points` are given.
            points: tell of the locations that cover these points, given as fractions of the
                picture's width and height from its upper left corner.
            words: likeliest words told of each such location, besides its caption.
            captions: False writes none, neither of layers nor of locations.
            calibration: see `devil.saliency.calibrate`; words know `pmi` and `none` alone.
            prompt: text that queries and words are conditioned on, not scored.
            smoothing: odd kernel of the average pooling before a location is read; 1 is none.
            decoding: longest caption and batch size.

        Raises:
            ImageError, LayerError, QueryError: what was given cannot be used; says why.
            BackboneError: the model was loaded without its backbone.
        """
        from devil.describing import explain_images

        return explain_images(
            self,
            [image],
            layers=layers,
            queries=queries,
            dense=dense,
            points=points,
            words=words,
            captions=captions,
            calibration=calibration,
            prompt=prompt,
            smoothing=smoothing,
            decoding=decoding,
        )[0]

    def vocabulary_saliency(
        self,
        image: str | PathLike[str] | bytes | Image.Image,
        *,
        layers: Sequence[str] | str | None = None,
        top: int = 10,
        calibration: Literal["none", "pmi"] = "pmi",
        prompt: str = "",
        smoothing: int = 1,
        decoding: DecodingConfig | None = None,
    ) -> "dict[str, VocabularyMaps]":
        """The likeliest words at every location, and the map of any word, from one pass.

        Args:
            image: a path, the bytes of a file, or a picture.
            layers: names out of `layers`, and `all` for all at once; None asks for everything.
            top: words per location.
            calibration: `none`: log-probabilities in nats; `pmi`: minus those for the layer's mean
                feature, with words of probability below 1e-4 left out of the ranking.
            prompt: text that stands before the words.
            smoothing: odd kernel of the average pooling before a location is read; 1 is none.
            decoding: batch size and memory.

        Returns:
            The maps of each layer.

        Raises:
            ImageError, LayerError, QueryError: what was given cannot be used; says why.
            BackboneError: the model was loaded without its backbone.
        """
        from devil.describing import vocabulary_saliency

        return vocabulary_saliency(
            self,
            [image],
            layers=layers,
            top=top,
            calibration=calibration,
            prompt=prompt,
            smoothing=smoothing,
            decoding=decoding,
        )[0]

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write a model folder (see `devil.folder`); whole or not at all."""
        from devil.folder import save_model

        save_model(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        device: torch.device | str = "cpu",
        backbone: str | None = None,
        language_model: str | None = None,
        load_backbone: bool = True,
        revision: str | None = None,
        precision: Literal["float32", "bfloat16", "auto"] = "float32",
    ) -> "DeViL":
        """Load a model folder or a hub id.

        Args:
            name: folder written by `save_pretrained`; or a folder of versions, whose current one
                is loaded (see `devil.versions`); or `OWNER/NAME` on the hub.
            device: where the models go.
            backbone: path of the backbone's weights, where the recorded one does not exist here.
            language_model: name or folder of the LM, likewise.
            load_backbone: False for work on stored features only.
            revision: branch, tag or commit of a hub model.
            precision: number format of translator and language model, see `to_precision`.

        Raises:
            ModelFolderError: a file is missing, corrupt, or of another format.
            BackboneError, LanguageModelError: a frozen model cannot be had, or is not the one
                that the translator was trained for.
        """
        from devil.folder import load_model

        model = load_model(
            name,
            device=device,
            backbone_weights=backbone,
            language_model=language_model,
            with_backbone=load_backbone,
            revision=revision,
        )
        return model if precision == "float32" else model.to_precision(precision)

    def push_to_hub(self, repository: str, *, private: bool = True, message: str = "") -> str:
        """Upload the model folder to the hub and return the commit's address."""
        from devil.folder import push_model

        return push_model(self, repository, private=private, message=message)
