"""The translator: feature vectors of some layers → n prefix embeddings of a language model.

DeViL (arXiv 2309.01617) §3.1. Each layer's vector becomes one token (Linear
plus the embedding of that layer's slot); n learned prefix tokens follow; a pre-LN Transformer
encoder mixes them; its last n outputs, projected, are the prefix. A layer that is not given costs
nothing: its token is absent, which equals a masked one; nor does a masked one (`encoder`). With
more tokens for each vector and one layer this is ClipCap's mapping network (arXiv 2111.09734 §3.2).
"""

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from devil.config import TranslatorConfig
from devil.encoder import encode_visible
from devil.errors import LayerError

INITIAL_STD = 0.1
"""Standard deviation at which learned tokens and slot embeddings start."""


def class_slot(layer: str) -> str:
    """Name of the slot that takes a layer's class token."""
    return f"{layer}.class"


class Translator(nn.Module):
    """Feature vectors → prefix embeddings.

    Attributes:
        slots: names of the inputs in their order: layers, then their class tokens if these are on.
        feature_mean, feature_std: (channels,) per slot; inputs are standardised by them, which
            folds into each slot's Linear and starts as the identity.
    """

    def __init__(
        self, config: TranslatorConfig, channels: Mapping[str, int], embedding_width: int
    ) -> None:
        """Build with random weights.

        Args:
            config: sizes.
            channels: width of each layer's features, in the layers' order.
            embedding_width: width of the language model's input embeddings.
        """
        super().__init__()
        self.config = config
        self.layers = tuple(channels)
        widths = dict(channels)
        if config.class_tokens:
            widths |= {class_slot(layer): width for layer, width in channels.items()}
        self.slots = tuple(widths)
        width = config.width
        self.project = nn.ModuleList(
            nn.Linear(c, config.tokens_per_layer * width) for c in widths.values()
        )
        self.slot_embedding = nn.Parameter(torch.randn(len(widths), width) * INITIAL_STD)
        self.prefix_tokens = nn.Parameter(torch.randn(config.prefix_length, width) * INITIAL_STD)
        block = nn.TransformerEncoderLayer(
            width,
            config.heads,
            config.feedforward,
            dropout=0.0,
            activation=F.gelu,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            block, config.depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.output = nn.Linear(width, embedding_width)
        for index, c in enumerate(widths.values()):
            self.register_buffer(f"feature_mean_{index}", torch.zeros(c))
            self.register_buffer(f"feature_std_{index}", torch.ones(c))
        self._initialise_blocks()

    def _initialise_blocks(self) -> None:
        """Draw each block anew: `nn.TransformerEncoder` starts them as copies of one another."""
        for block in self.encoder.layers:
            assert isinstance(block, nn.TransformerEncoderLayer)
            block.self_attn._reset_parameters()
            block.linear1.reset_parameters()
            block.linear2.reset_parameters()

    def parameter_count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def tokens(self, features: Collection[str]) -> int:
        """Tokens of one row with these slots."""
        return len(features) * self.config.tokens_per_layer + self.config.prefix_length

    @property
    def bytes_per_token(self) -> int:
        """An upper estimate of the bytes that a token takes on its way through the encoder."""
        return (4 * self.config.feedforward + 8 * self.config.width) * 4

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Turn the weights into another number format; means and deviations keep theirs."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def standardise_by(
        self, statistics: Mapping[str, tuple[Float[Tensor, "channels"], Float[Tensor, "channels"]]]
    ) -> None:
        """Set the mean and deviation of each slot's features; a constant channel keeps its scale.

        Does nothing when the configuration says `standardise=False`.
        """
        if not self.config.standardise:
            return
        for index, slot in enumerate(self.slots):
            mean, std = statistics[slot]
            self.get_buffer(f"feature_mean_{index}").copy_(mean)
            scale = torch.where(std > 1e-6, std, torch.ones_like(std))
            self.get_buffer(f"feature_std_{index}").copy_(scale)

    def forward(
        self,
        features: Mapping[str, Float[Tensor, "batch channels"]],
        visible: Bool[Tensor, "batch slot"] | None = None,
    ) -> Float[Tensor, "batch prefix hidden"]:
        """Prefix embeddings from the features of one or more slots.

        Args:
            features: per slot one vector for each row; slots that are not given are not computed.
            visible: which of the given slots (in the translator's order) each row may see; all,
                if None. Token dropout hides layers by it; prefix tokens are always visible.

        Raises:
            LayerError: a slot is unknown, or none is given.
        """
        slots = self._known(features)
        tokens = torch.cat([self._tokens(slot, features[slot]) for slot in slots], dim=1)
        batch = tokens.shape[0]
        tokens = torch.cat([tokens, self.prefix_tokens.expand(batch, -1, -1)], dim=1)
        count = self.config.prefix_length
        if visible is None:
            return self.output(self.encoder(tokens)[:, -count:])
        shown = visible.repeat_interleave(self.config.tokens_per_layer, dim=1)
        shown = torch.cat([shown, shown.new_ones(batch, count)], dim=1)
        return self.output(encode_visible(self.encoder, tokens, shown, count))

    def _known(self, features: Mapping[str, Tensor]) -> list[str]:
        unknown = sorted(set(features) - set(self.slots))
        if unknown or not features:
            raise LayerError(
                f"the translator was asked for {unknown or 'no layer'}; it was trained for: "
                f"{', '.join(self.slots)}."
            )
        return [slot for slot in self.slots if slot in features]

    def _tokens(
        self, slot: str, vectors: Float[Tensor, "batch channels"]
    ) -> Float[Tensor, "batch token hidden"]:
        index = self.slots.index(slot)
        mean = self.get_buffer(f"feature_mean_{index}")
        std = self.get_buffer(f"feature_std_{index}")
        vectors = (vectors.to(mean.dtype) - mean) / std
        # Standardised in full precision also where the weights are bfloat16.
        vectors = vectors.to(self.slot_embedding.dtype)
        tokens = self.project[index](vectors).unflatten(1, (-1, self.config.width))
        return tokens + self.slot_embedding[index]


def token_dropout(
    batch: int,
    layers: int,
    p: float,
    generator: torch.Generator,
    *,
    class_tokens: bool = False,
) -> Bool[Tensor, "batch slot"]:
    """Which slots each row of a training batch sees (DeViL, token dropout).

    Each layer is hidden with probability p, and a row that lost all of them is drawn again, alone.
    With class tokens, each row draws one of three modes (patches only, class tokens only, both),
    and the two tokens of a layer share one fate.

    Returns:
        (batch, layers), or (batch, 2 · layers) with class tokens: layers first.
    """
    keep = torch.rand(batch, layers, generator=generator) >= p
    while not keep.any(dim=1).all():
        lost = ~keep.any(dim=1)
        keep[lost] = torch.rand(int(lost.sum()), layers, generator=generator) >= p
    if not class_tokens:
        return keep
    mode = torch.randint(3, (batch, 1), generator=generator)
    return torch.cat([keep & (mode != 1), keep & (mode != 0)], dim=1)


def slots_of(layers: Sequence[str], *, class_tokens: bool) -> tuple[str, ...]:
    """Slot names of some layers: the layers, then their class tokens if these are on."""
    return (*layers, *(class_slot(layer) for layer in layers if class_tokens))
