"""Configuration: frozen dataclasses, validated on construction; command lines are made from them.

What is discovered at run time (feature widths, the language model's width) is a constructor
argument of the parts and never stands here. `from_dict` refuses unknown keys, so a saved
configuration of another version is never half understood.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from devil.errors import ConfigError

Config = TypeVar("Config")


def _check(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")


class _Typed:
    """Checks on construction that fields have their declared types; subclasses add ranges."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            if not _fits(getattr(self, name), hint):
                raise ConfigError(
                    f"{type(self).__name__}.{name} is {getattr(self, name)!r}; a value of type "
                    f"{_type_name(hint)} is needed."
                )


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(_Typed):
    """Which frozen vision model, and which of its layers, are explained."""

    name: str
    """`timm:NAME`, `open_clip:NAME[/TAG]`, `transformers:ID` or `torchvision:NAME[/WEIGHTS]`."""
    weights: str = "pretrained"
    """`pretrained` (the library's own, fetched if not cached), `random`, or a state dict's path."""
    layers: tuple[str, ...] = ()
    """Module names as `named_modules()` prints them; empty: the family's default list."""
    image_size: int | None = None
    """Input side in pixels; None: the model's own."""
    seed: int = 0
    """Seed of the weights when `weights` is `random`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        library, _, model = self.name.partition(":")
        allowed = "LIBRARY:NAME, e.g. timm:resnet50"
        _check(bool(library and model), "backbone name", self.name, allowed)
        _check(bool(self.weights), "weights", self.weights, "pretrained, random, or a path")
        _check(
            len(set(self.layers)) == len(self.layers), "layers", self.layers, "each layer only once"
        )
        size = self.image_size
        _check(size is None or size >= 16, "image_size", size, "at least 16, or None")


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(_Typed):
    """Which frozen causal language model continues the prefix."""

    name: str
    """Hub id or folder in transformers' layout."""
    text: Literal["verbatim", "plain"] = "verbatim"
    """How captions and queries are written: as they are, or lower-case without the final stop."""


@dataclass(frozen=True, kw_only=True)
class TranslatorConfig(_Typed):
    """Size of the translator (DeViL, arXiv 2309.01617; defaults are the paper's with OPT-125M)."""

    width: int = 768
    """Width d of tokens inside the translator."""
    depth: int = 12
    """Number of pre-LN Transformer blocks."""
    heads: int = 12
    """Attention heads per block."""
    feedforward: int = 3072
    """Hidden width of each block's MLP."""
    prefix_length: int = 10
    """Number n of prefix embeddings handed to the language model."""
    tokens_per_layer: int = 1
    """Tokens into which the Linear expands each vector; 1 is DeViL's, 10 ClipCap's."""
    class_tokens: bool = False
    """Add the class token of each layer, with a slot of its own."""
    standardise: bool = True
    """Scale channels by the training set's mean and deviation (folds into the Linear)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in "width depth heads feedforward prefix_length tokens_per_layer".split():
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(
            self.width % self.heads == 0, "width", self.width, f"a multiple of {self.heads} heads"
        )


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(_Typed):
    """Greedy decoding and the batches in which locations are decoded."""

    max_new_tokens: int = 50
    """At most this many tokens per caption."""
    batch_size: int = 512
    """Rows that the language model decodes or scores at once, at most."""
    memory_gb: float | None = None
    """Memory for a batch besides the weights (and the copies of them that `devil.packed_weights`
    keeps on a CPU), in 10⁹ bytes; None: half of what is free."""
    captured: bool = False
    """Record the steps of decoding as CUDA graphs (`devil.captured`); on a GPU alone, where it has
    not been timed yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        memory = self.memory_gb
        _check(memory is None or memory > 0, "memory_gb", memory, "above 0, or None")


@dataclass(frozen=True, kw_only=True)
class FetchConfig(_Typed):
    """How pictures are fetched from the web; the limits are those of one worker."""

    concurrency: int = 32
    """Requests at once."""
    per_host: int = 4
    """Requests at once to one host."""
    timeout_seconds: float = 10.0
    """Longest wait for a connection, and for the next piece of an answer."""
    total_seconds: float = 60.0
    """Longest time of a request, however steadily its answer drips in."""
    retries: int = 2
    """Further tries when a server is busy (429), fails (5xx) or does not answer."""
    max_bytes: int = 20_000_000
    """Larger answers are broken off."""
    allow_private: bool = False
    """Fetch from this machine and its network, too; only for lists that you wrote yourself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("concurrency", "per_host", "max_bytes"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("timeout_seconds", "total_seconds"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        _check(self.retries >= 0, "retries", self.retries, "at least 0")


@dataclass(frozen=True, kw_only=True)
class SourceConfig(_Typed):
    """How captioned pictures are read; see `devil.data.source`."""

    format: Literal["auto", "webdataset", "parquet", "tsv", "coco", "table"] = "auto"
    """What lies at the address; `auto`: what its ending says."""
    images: str | None = None
    """Folder of the photos that `coco` and `table` name; None: the one that their file is in."""
    rows_per_shard: int = 10_000
    """Where files are cut into shards; those of `webdataset` are never cut."""
    key_column: str | None = None
    """In `parquet`; None: `key`, `image_key` or `__key__`, or else rows are numbered."""
    image_column: str | None = None
    """In `parquet` and `table`; None: the usual names."""
    caption_column: str | None = None
    """In `parquet` and `table`; None: the usual names."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """For `tsv`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.rows_per_shard >= 1, "rows_per_shard", self.rows_per_shard, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig(_Typed):
    """What extraction stores of each image."""

    mode: Literal["pooled", "maps"] = "pooled"
    """`pooled`: one clean mean and the dropout draws per layer; `maps`: the whole maps."""
    draws: int = 4
    """Dropout draws K stored per row and layer in `pooled` mode."""
    feature_dropout: float = 0.5
    """Probability p with which a draw leaves a location out."""
    seed: int = 0
    """Seed of the draws; a row's draws depend on the seed and its key alone."""
    batch_size: int = 64
    """Images per forward pass of the backbone."""
    max_pixels: int = 100_000_000
    """Pictures with more pixels are refused before they are decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.draws >= 0, "draws", self.draws, "at least 0")
        _check(0 <= self.feature_dropout < 1, "feature_dropout", self.feature_dropout, "[0, 1)")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _check(self.max_pixels >= 1, "max_pixels", self.max_pixels, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Typed):
    """Optimisation of the translator (defaults are the paper's, arXiv 2309.01617)."""

    steps: int = 1_000_000
    """Optimiser steps in all."""
    batch_size: int = 64
    """Images per step over all workers together."""
    captions_per_image: int = 1
    """Captions of each image in a step; they share the image's prefix."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    final_learning_rate: float = 1e-6
    """Floor of the linear decay."""
    warmup_steps: int = 5_000
    """Steps of linear warm-up; at most `steps`."""
    weight_decay: float = 1e-6
    """AdamW's decay, not applied to biases, norms, and learned tokens."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    token_dropout: float = 0.5
    """Probability with which a layer's token is hidden."""
    feature_dropout: bool = True
    """Train on the store's dropout draws, or drop locations of its maps; False: on clean means."""
    lm_dropout: bool = False
    """Leave the language model's own dropout active, as the published code does."""
    max_caption_tokens: int = 64
    """Longer captions are left out of training, and counted aloud."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast where the processor has it."""
    compile: bool = False
    """Compile translator and language model (`torch.compile`): the first step takes a minute, and
    needs a C++ compiler where there is no GPU; docs/PERFORMANCE.md tells what it saves."""
    validation_rows: int = 500
    """Rows held out of training, the same for every run over the same keys."""
    validate_every: int = 2_000
    """Steps between validations (loss and CIDEr)."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    log_every: int = 50
    """Steps between lines of metrics."""
    select: Literal["last", "loss", "cider"] = "last"
    """Whose weights the model gets: the last step's, or those of the best validation by loss, or by
    CIDEr from all layers."""
    patience: int = 0
    """Validations in a row without a better one after which training ends; 0: never early."""
    chunk_rows: int = 100_000
    """Rows of the store held in memory and shuffled together."""
    seed: int = 0
    """Seed of the initialisation, the order, and every draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one = (
            "steps batch_size captions_per_image max_caption_tokens validate_every "
            "checkpoint_every log_every chunk_rows"
        )
        for name in at_least_one.split():
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        at_least_zero = "warmup_steps weight_decay gradient_clip validation_rows patience"
        for name in at_least_zero.split():
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _check(0 <= self.token_dropout < 1, "token_dropout", self.token_dropout, "[0, 1)")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        floor = self.final_learning_rate
        _check(0 <= floor <= self.learning_rate, "final_learning_rate", floor, "[0, learning_rate]")
        last, rows = self.select == "last", self.validation_rows
        _check(last or rows > 0, "validation_rows", rows, f"at least 1 with select={self.select!r}")
        allowed = "0 with select='last', which compares no weights"
        _check(not (last and self.patience), "patience", self.patience, allowed)


def to_dict(config: object) -> dict[str, Any]:
    """The configuration as JSON-ready values (tuples become lists)."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Rebuild a configuration of type `kind` from `to_dict`'s output.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    assert dataclasses.is_dataclass(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{kind.__name__} has no field {unknown}; fields: {sorted(fields)}.")
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{kind.__name__} needs the field {missing}.")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _restored(value, hints[name]) for name, value in values.items()})


def _restored(value: Any, hint: Any) -> Any:
    """What JSON has no kinds for: configurations inside others, and tuples."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, hint), value)
    return tuple(value) if isinstance(value, list) else value


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a field's declared type; a bool is no number, an int is a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is types.UnionType:
        return any(_fits(value, option) for option in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
