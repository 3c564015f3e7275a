"""Captions behind their images' prefixes in one row, each attending to its prefix and itself alone.

The row is ``[BOS, prefix × n]`` of one image after the other, then all captions, shortest first,
and a little filling.
A language model's matrices see it as one list of tokens without padding. Its attention is replaced,
for as long as it runs, by two: prefixes on themselves, and each caption on its image's prefix and
on itself, padded to the longest of a group. As a mask over rows this was two fifths of a training
step.
"""

import contextlib
import contextvars
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPS = 4
"""Into which captions are sorted by length."""
WIDTHS = 4
"""A group's width is a multiple of this."""
LENGTHS = 64
"""The row's length is a multiple of this: sizes that come again find memory and kernels ready."""


class CaptionGroup(NamedTuple):
    """Captions of similar length, next to each other in the row."""

    first: int
    """Place in the row of the group's first token."""
    image: Int[Tensor, "caption"]
    """Image of each caption."""
    places: Int[Tensor, "token"]
    """Where the tokens are in the group's flattened rectangle, caption × width."""
    width: int
    """Tokens of the longest caption, or a little more."""


class CaptionLayout(NamedTuple):
    """The row's tokens, and where its labels are."""

    ids: Int[Tensor, "position"]
    """Token ids; anything where a prefix stands."""
    positions: Int[Tensor, "position"]
    """Place in the text that a token sees."""
    prefix: Int[Tensor, "place"]
    """Where the prefixes stand, image by image."""
    predicting: Int[Tensor, "label"]
    """Where each label is predicted."""
    labels: Int[Tensor, "label"]
    """Each caption and its EOS."""
    images: int
    before: int
    """Positions of each image's BOS and prefix."""
    groups: tuple[CaptionGroup, ...]

    def to(self, device: torch.device) -> "CaptionLayout":
        """The same on a device, in one copy."""
        if device.type == "cpu":
            return self
        tensors = [*self[:5], *(t for group in self.groups for t in (group.image, group.places))]
        flat = torch.cat(tensors).pin_memory().to(device, non_blocking=True)
        parts = list(flat.split([len(tensor) for tensor in tensors]))
        groups = tuple(
            group._replace(image=parts[5 + 2 * i], places=parts[6 + 2 * i])
            for i, group in enumerate(self.groups)
        )
        ids, positions, prefix, predicting, labels = parts[:5]
        return self._replace(
            ids=ids,
            positions=positions,
            prefix=prefix,
            predicting=predicting,
            labels=labels,
            groups=groups,
        )


def caption_layout(
    captions: Sequence[Sequence[int]], images: int, *, bos: int | None, eos: int, prefix: int
) -> CaptionLayout:
    """All captions of a batch behind their prefixes, on the CPU.

    Args:
        captions: token ids without BOS and EOS; the same number for each image, an image's
            together. An empty one has no label.
        images: number of images.
        bos, eos: token ids; `bos` is None where sequences start with the prefix.
        prefix: number n of prefix embeddings.
    """
    each = len(captions) // images
    start = [] if bos is None else [bos]
    before = len(start) + prefix
    heads = torch.arange(images * before).view(images, before)
    ids = [*start, *[eos] * prefix] * images
    positions = list(range(before)) * images
    predicting: list[int] = []
    labels: list[int] = []
    groups = []
    for members in length_groups([len(caption) for caption in captions]):
        first, width, places = len(ids), round_up(len(captions[members[-1]]), WIDTHS), []
        for row, index in enumerate(members):
            caption, here = captions[index], len(ids)
            # The prefix's end predicts the first token, each token the next, the last one EOS.
            predicting += [(index // each + 1) * before - 1, *range(here, here + len(caption))]
            labels += [*caption, eos]
            ids += caption
            positions += range(before, before + len(caption))
            places += range(row * width, row * width + len(caption))
        image = torch.tensor(members) // each
        groups.append(CaptionGroup(first, image, torch.tensor(places), width))
    filling = round_up(len(ids), LENGTHS) - len(ids)
    ids += [eos] * filling
    positions += [0] * filling
    return CaptionLayout(
        torch.tensor(ids),
        torch.tensor(positions),
        heads[:, len(start) :].flatten(),
        torch.tensor(predicting, dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        images,
        before,
        tuple(groups),
    )


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of what is not empty in groups of equal number, shortest first."""
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
    size = max(1, math.ceil(len(order) / GROUPS))
    return [order[start : start + size] for start in range(0, len(order), size)]


def round_up(count: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-count // multiple) * multiple


def run_layout(
    body: Any,
    words: Float[Tensor, "position hidden"],
    prefix: Float[Tensor, "image prefix hidden"],
    layout: CaptionLayout,
) -> Float[Tensor, "position hidden"]:
    """Hidden states of a language model's body, for a row of captions behind prefixes.

    Args:
        body: a transformers model without its head, that attends by the `USUAL` function of
            `AttentionInterface`, to no fewer positions than the layout's longest text has.
        words: embeddings of the row's token ids.
        prefix: one prefix for each image.
        layout: the row.
    """
    given = prefix.to(words.dtype).flatten(0, 1)
    embeddings = words.index_copy(0, layout.prefix, given)
    with _attention_by(body.config.get_text_config(), layout):
        return body(
            inputs_embeds=embeddings[None], position_ids=layout.positions[None], use_cache=False
        ).last_hidden_state[0]


USUAL, NAME = "sdpa", "devil_captions"
"""Attention of the models that this is for, by the names of transformers, and what replaces it."""
_layout = contextvars.ContextVar[CaptionLayout | None]("layout", default=None)
_running: dict[int, int] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def _attention_by(config: Any, layout: CaptionLayout) -> Iterator[None]:
    """Attention along a layout in this thread; in others the model attends as usual meanwhile."""
    token = _layout.set(layout)
    with _lock:
        _running[id(config)] = _running.get(id(config), 0) + 1
        config._attn_implementation = NAME
    try:
        yield
    finally:
        with _lock:
            _running[id(config)] -= 1
            if not _running[id(config)]:
                del _running[id(config)]
                config._attn_implementation = USUAL
        _layout.reset(token)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask along a layout; the usual one without."""
    return None if _layout.get() is not None else sdpa_mask(*args, **kwargs)


@torch.compiler.disable
def _attend(
    module: Any,
    query: Float[Tensor, "1 head position channel"],
    key: Float[Tensor, "1 group position channel"],
    value: Float[Tensor, "1 group position channel"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Float[Tensor, "1 position head channel"], None]:
    """What transformers calls in each layer: attention along the layout.

    Raises:
        ValueError: the model wants something else of its attention.
    """
    layout = _layout.get()
    if layout is None:
        options = others | {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if others.get("softcap") is not None or others.get("position_bias") is not None:
        raise ValueError("attention with capped or biased scores is not laid out by caption")
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    end = layout.images * layout.before
    rows = [t[0] for t in (query, key, value)]  # (head, position, channel)
    starts = [t[:, :end].unflatten(1, (layout.images, layout.before)) for t in rows]
    options = {"dropout_p": dropout, "scale": scaling}
    mask = _causal(layout.before, layout.before, query.device)
    found = F.scaled_dot_product_attention(*starts, attn_mask=mask, **options)
    mixed = [found.flatten(1, 2)]
    for group in layout.groups:
        tokens = slice(group.first, group.first + len(group.places))
        texts = [_padded(t[:, tokens], group) for t in rows]
        shared = [t.index_select(1, group.image) for t in starts[1:]]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(shared, texts[1:], strict=True))
        mask = _causal(group.width, layout.before + group.width, query.device)
        found = F.scaled_dot_product_attention(texts[0], keys, values, attn_mask=mask, **options)
        mixed.append(found.flatten(1, 2).index_select(1, group.places))
        end += len(group.places)
    mixed.append(rows[0].new_zeros(rows[0].shape[0], rows[0].shape[1] - end, rows[0].shape[2]))
    return torch.cat(mixed, dim=1).transpose(0, 1)[None], None


def _padded(
    tokens: Float[Tensor, "head token channel"], group: CaptionGroup
) -> Float[Tensor, "head caption width channel"]:
    """A group's tokens as a rectangle; padding stands behind a caption, which cannot see it."""
    heads, _, channels = tokens.shape
    flat = tokens.new_zeros(heads, len(group.image) * group.width, channels)
    return flat.index_copy(1, group.places, tokens).unflatten(1, (-1, group.width))


def _causal(asking: int, answering: int, device: torch.device) -> Bool[Tensor, "token key"]:
    """The last tokens each see themselves and all before them."""
    sees = torch.ones(asking, answering, dtype=torch.bool, device=device)
    return sees.tril(diagonal=answering - asking)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
