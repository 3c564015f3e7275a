"""The translator's Transformer encoder on the tokens that are visible, and on no others.

Under token dropout about half of the layers' tokens are masked. A masked token changes nothing, so
its products with weights need not be computed: matrices run over one flat list of the visible
tokens of all rows, and attention alone over padded rows.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class VisibleTokens(NamedTuple):
    """Where the visible tokens of a (row, token) rectangle are."""

    source: Int[Tensor, "place"]
    """Places in the flattened rectangle, row by row."""
    target: Int[Tensor, "place"]
    """Their places in a flattened rectangle of `width` columns, moved up to the left."""
    mask: Bool[Tensor, "row head query key"]
    """(row, 1, 1, width): which columns hold a token."""
    width: int


@torch.compiler.disable  # sizes that follow from values end every graph
def visible_tokens(shown: Bool[Tensor, "row token"], device: torch.device) -> VisibleTokens:
    """Find them where the mask is; a mask on the CPU spares a GPU the wait."""
    counts = shown.sum(dim=1)
    width = int(counts.max())
    rank = shown.cumsum(dim=1) - 1
    target = (torch.arange(len(shown), device=shown.device)[:, None] * width + rank)[shown]
    mask = torch.arange(width, device=shown.device) < counts[:, None]
    source = shown.flatten().nonzero()[:, 0]
    source, target, mask = (
        t.to(device, non_blocking=True) for t in (source, target, mask[:, None, None])
    )
    return VisibleTokens(source, target, mask, width)


def encode_visible(
    encoder: nn.TransformerEncoder,
    tokens: Float[Tensor, "row token hidden"],
    shown: Bool[Tensor, "row token"],
    last: int,
) -> Float[Tensor, "row last hidden"]:
    """What `encoder(tokens, src_key_padding_mask=~shown)` returns for the last tokens of each row.

    Args:
        encoder: pre-LN blocks without dropout, and a final norm.
        tokens: all of them, hidden or not.
        shown: which tokens are visible; the last ones of each row must be.
        last: number of outputs for each row.
    """
    rows, width = tokens.shape[0], tokens.shape[2]
    places = visible_tokens(shown, tokens.device)  # type: ignore[reportCallIssue]
    flat = tokens.flatten(0, 1).index_select(0, places.source)
    for block in encoder.layers:
        flat = _block(block, flat, rows, places)
    assert encoder.norm is not None
    ends = places.mask[:, 0, 0].sum(dim=1).cumsum(dim=0)
    wanted = ends[:, None] - torch.arange(last, 0, -1, device=tokens.device)
    return encoder.norm(flat.index_select(0, wanted.flatten())).view(rows, last, width)


def _block(
    block: Any, flat: Float[Tensor, "place hidden"], rows: int, places: VisibleTokens
) -> Float[Tensor, "place hidden"]:
    """One pre-LN block: attention and MLP, each added to what came in."""
    attention = block.self_attn
    projected = F.linear(block.norm1(flat), attention.in_proj_weight, attention.in_proj_bias)
    padded = projected.new_zeros(rows * places.width, projected.shape[1])
    padded = padded.index_copy(0, places.target, projected)
    heads = padded.view(rows, places.width, 3, attention.num_heads, attention.head_dim)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=places.mask)
    mixed = mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, places.target)
    flat = flat + attention.out_proj(mixed)
    return flat + block.linear2(block.activation(block.linear1(block.norm2(flat))))
