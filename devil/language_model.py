"""A frozen causal language model of transformers: embed, run on embeddings, tokenise.

The input is ``[BOS, prefix × n, caption, EOS]``; a model without a BOS token starts with the
prefix. Decoding and scoring are left to `decoding` and `saliency`.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.activations import NewGELUActivation

from devil.backbones.base import weights_digest
from devil.cache import reserved_cache
from devil.caption_attention import USUAL, caption_layout, run_layout
from devil.config import LanguageModelConfig
from devil.errors import CaptionError, LanguageModelError, QueryError
from devil.free_memory import free_bytes
from devil.packed_weights import forget_packed, is_linear, make_packable, packed_weights
from devil.packing import pack

ANCHOR = "a"
"""Stands before a query without a prompt while it is tokenised, as a word of a sentence would."""

PACKING_SHARE = 0.25
"""Share of the free memory that blocked copies of the weights may take on a CPU."""


class LanguageModel(nn.Module):
    """A frozen causal LM and its tokenizer.

    Attributes:
        config: the name it was loaded by, and how text is written for it.
        embedding_width: width of its input embeddings (not always its hidden width).
        context: longest sequence it takes, in tokens.
        bos, eos: token ids; `bos` is None where the tokenizer has none.
    """

    def __init__(self, model: Any, tokenizer: Any, config: LanguageModelConfig) -> None:
        """Wrap a loaded model and tokenizer, and freeze the model.

        Raises:
            LanguageModelError: there is no end-of-text token, so captions could not end.
        """
        super().__init__()
        self.config = config
        self.model: Any = _fuse_activations(model).eval().requires_grad_(False)
        make_packable(self.model)
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        if tokenizer.eos_token_id is None:
            raise LanguageModelError(
                f"language model {config.name!r}: its tokenizer has no end-of-text token, so "
                "captions could not end; set eos_token in its tokenizer_config.json."
            )
        self.eos: int = tokenizer.eos_token_id
        self.embedding_width: int = model.get_input_embeddings().embedding_dim
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.context: int = int(limit) if limit else 2048
        self._one_token: tuple[list[tuple[Tensor, Tensor]] | None] | None = None
        self.eval()
        self._check_head()

    def _check_head(self) -> None:
        """Compare `logits(hidden)` with the whole model once: some families scale their logits."""
        # Not in inference mode, where weights would be packed: it may be trained with, or moved.
        embeddings = self.embed(torch.tensor([[self.eos, self.eos]], device=self.device))
        ours = self.logits(self.hidden(embeddings).last_hidden_state)
        whole = self.model(inputs_embeds=embeddings).logits.to(ours.dtype)
        if not torch.allclose(ours, whole, rtol=1e-2, atol=1e-2):
            raise LanguageModelError(
                f"language model {self.config.name!r} ({type(self.model).__name__}) turns hidden "
                "states into logits in a way that is not known here; choose another family."
            )

    @functools.cached_property
    def packs(self) -> bool:
        """Whether texts can be packed in one row (`devil.packing`).

        Tried out once, since a model says nowhere that it heeds a mask and positions of ours:
        those with ALiBi or a recurrent state, and fused attention without masks, do not.
        """
        texts = [[0, 1, 2], [2, 1]]
        device = self.device
        prefix = self.embed(torch.tensor([[self.eos, 1]], device=device))
        packed = pack([texts], self.eos, device)
        embeddings = torch.cat([prefix, self.embed(packed.ids)], dim=1)
        try:
            with torch.inference_mode():
                together = self.hidden(
                    embeddings,
                    attention_mask=packed.mask(2),
                    position_ids=packed.positions(2),
                    use_cache=False,
                ).last_hidden_state[0, 2:]
                apart = torch.cat(
                    [
                        self.hidden(
                            torch.cat([prefix, self.embed(torch.tensor([t], device=device))], 1)
                        ).last_hidden_state[0, 2:]
                        for t in texts
                    ]
                )
        except Exception:  # models refuse in many ways
            return False
        return torch.allclose(together, apart, rtol=1e-2, atol=1e-2)

    @functools.cached_property
    def attends_by_caption(self) -> bool:
        """Whether captions can stand in one row behind their prefixes (`devil.caption_attention`).

        Tried out once: models with attention of their own, outside transformers' interface, or
        with scores that are capped or biased, do not. Texts must fit `attention_window`.
        """
        body, device = self.model.base_model, self.device
        if body.config.get_text_config()._attn_implementation != USUAL:
            return False
        texts, before = [[0, 1, 2, 3, 2, 1, 0, 3], [2, 1, 3]], [[self.eos, 1], [2, 3]]
        layout = caption_layout(texts, 2, bos=None, eos=self.eos, prefix=2).to(device)
        prefix = self.embed(torch.tensor(before, device=device))
        with torch.inference_mode(), self._without_dropout():
            try:
                together = run_layout(body, self.embed(layout.ids), prefix, layout)
            except Exception:  # models refuse in many ways
                return False
            apart = [
                body(inputs_embeds=self.embed(torch.tensor([start + text], device=device)))
                for start, text in zip(before, texts, strict=True)
            ]
        longer, shorter = (states.last_hidden_state[0] for states in apart)
        expected = torch.cat([longer[:2], shorter[:2], shorter[2:], longer[2:]])
        tolerance = max(1e-2, 8 * torch.finfo(expected.dtype).eps)
        found = together[: len(expected)]  # filling follows
        return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)

    @property
    def attention_window(self) -> int:
        """How many positions a token sees at most, where the model says so; else the context."""
        config = self.model.config.get_text_config()
        limits = [getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size")]
        return min([self.context, *(limit for limit in limits if limit)])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Turn the weights into another number format; tables of positions keep theirs."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        self._one_token = None
        forget_packed(self.model)

    def train(self, mode: bool = True) -> "LanguageModel":
        """Stay in evaluation mode: the model is frozen (see `with_dropout`)."""
        return super().train(False)

    @contextlib.contextmanager
    def with_dropout(self, active: bool) -> Iterator[None]:
        """Leave the model's own dropout active inside the block, as the published code does."""
        self.model.train(active)
        try:
            yield
        finally:
            self.model.eval()

    @contextlib.contextmanager
    def _without_dropout(self) -> Iterator[None]:
        active = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(active)

    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) of the weights."""
        return weights_digest(self.model)

    def embed(self, ids: Int[Tensor, "*batch token"]) -> Float[Tensor, "*batch token hidden"]:
        """Input embeddings of token ids."""
        return self.model.get_input_embeddings()(ids)

    def start(
        self, prefix: Float[Tensor, "batch prefix hidden"]
    ) -> Float[Tensor, "batch token hidden"]:
        """``[BOS, prefix]``, or the prefix alone where there is no BOS token."""
        prefix = self.cast(prefix)
        if self.bos is None:
            return prefix
        bos = self.embed(torch.tensor([[self.bos]], device=prefix.device))
        return torch.cat([bos.expand(prefix.shape[0], -1, -1), prefix], dim=1)

    def cast(self, prefix: Float[Tensor, "batch prefix hidden"]) -> Tensor:
        """The prefix in the number format of the embeddings."""
        return prefix.to(self.model.get_input_embeddings().weight.dtype)

    @property
    def beginning(self) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of BOS by layer, each (1, head, 1, channel): every row starts with them.

        None without a BOS token, or where a layer's state is more than keys and values.
        """
        if self.bos is None:
            return None
        return self._states_of_one_token

    @property
    def bytes_per_position(self) -> int:
        """Bytes of keys and values that one position of one row takes, over all layers."""
        states = self._states_of_one_token
        if states is not None:
            return sum(t.numel() * t.element_size() for pair in states for t in pair)
        config = self.model.config.get_text_config()
        weight = self.model.get_input_embeddings().weight
        return 2 * config.num_hidden_layers * config.hidden_size * weight.element_size()

    @functools.cached_property
    def bytes_per_token(self) -> int:
        """An upper estimate of the bytes that a token takes on its way through the model."""
        weights = [
            module.weight
            for module in self.model.base_model.modules()
            if not isinstance(module, nn.Embedding) and hasattr(module, "weight")
        ]
        widest = max(max(weight.shape) for weight in weights)
        hidden = self.model.config.get_text_config().hidden_size
        size = max(self.model.get_input_embeddings().weight.element_size(), 4)
        return (4 * widest + 8 * hidden) * size

    @functools.cached_property
    def _room_to_pack(self) -> bool:
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return weights < PACKING_SHARE * free_bytes(torch.device("cpu"))

    @property
    def vocabulary(self) -> int:
        """Number of next tokens that the head scores."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def _states_of_one_token(self) -> list[tuple[Tensor, Tensor]] | None:
        if self._one_token is None:
            self._one_token = (self._run_one_token(),)
        return self._one_token[0]

    @torch.inference_mode()
    def _run_one_token(self) -> list[tuple[Tensor, Tensor]] | None:
        if reserved_cache(self.model.config, 1, 1) is None:
            return None
        first = self.eos if self.bos is None else self.bos
        embeddings = self.embed(torch.tensor([[first]], device=self.device))
        cache = self.hidden(
            embeddings, past_key_values=DynamicCache(config=self.model.config), use_cache=True
        ).past_key_values
        return [(keys, values) for keys, values, *_ in cache]

    def _apply(self, fn: Any, recurse: bool = True) -> "LanguageModel":
        self._one_token = None  # of another device or number format from now on
        return super()._apply(fn, recurse)

    def hidden(self, embeddings: Float[Tensor, "batch token hidden"], **arguments: Any) -> Any:
        """Run the body without the head; the output's `last_hidden_state` feeds `logits`."""
        with packed_weights(self._room_to_pack):
            return self.model.base_model(inputs_embeds=embeddings, **arguments)

    def logits(
        self, hidden: Float[Tensor, "*batch hidden"], ids: Int[Tensor, "some"] | None = None
    ) -> Float[Tensor, "*batch vocab"]:
        """Next-token logits of hidden states, of all or some tokens, in float32 or wider."""
        head = self.model.get_output_embeddings()
        if ids is None:
            with packed_weights(self._room_to_pack):
                logits = head(hidden)
        elif is_linear(head):
            bias = None if head.bias is None else head.bias[ids]
            logits = nn.functional.linear(hidden, head.weight[ids], bias)
        else:
            logits = head(hidden)[..., ids]
        scale = getattr(self.model.config, "logits_scaling", None)  # Granite divides by it
        cap = getattr(self.model.config, "final_logit_softcapping", None)  # Gemma 2 and 3
        logits = logits / scale if scale else logits
        logits = torch.tanh(logits / cap) * cap if cap else logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @functools.cached_property
    def words(self) -> dict[str, int]:
        """Tokens that stand as whole words inside a sentence: word → token id.

        A token is a word when it begins with a space, has letters only, and the word is written
        with it. The beginnings of longer words are among them where they are words themselves.
        """
        anchor = self._ids(ANCHOR)
        start = f"{self.tokenizer.decode(anchor)} "
        count = min(self.vocabulary, len(self.tokenizer))
        texts = self.tokenizer.batch_decode([[*anchor, token] for token in range(count)])
        found = [
            (text.removeprefix(start), token)
            for token, text in enumerate(texts)
            if text.startswith(start) and text.removeprefix(start).isalpha()
        ]
        whole = [word for word, _ in found if self.clean(word) == word]
        written = self.tokenizer(
            [f"{ANCHOR} {word}" for word in whole], add_special_tokens=False, verbose=False
        )["input_ids"]
        return {w: ids[-1] for w, ids in zip(whole, written, strict=True) if ids[:-1] == anchor}

    def clean(self, text: str) -> str:
        """Text in the manner of `config.text`, with single spaces."""
        text = " ".join(text.split())
        if self.config.text == "plain":
            text = text.lower()
            text = text[:-1].rstrip() if text.endswith(".") else text
        return text

    def caption_ids(self, caption: str, *, limit: int | None = None) -> list[int]:
        """Token ids of a caption, without BOS and EOS.

        Raises:
            CaptionError: the caption is empty, or longer than `limit` or what the context leaves.
        """
        ids = self._ids(self.clean(caption))
        if not ids:
            raise CaptionError(f"caption {caption!r} is empty; leave it out.")
        allowed = self.context - 2 if limit is None else min(limit, self.context - 2)
        if len(ids) > allowed:
            raise CaptionError(
                f"caption {caption[:60]!r}... has {len(ids)} tokens; at most {allowed} are allowed."
            )
        return ids

    def query_ids(self, query: str, *, prompt: str = "") -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of a query as it stands inside a sentence after it.

        Without a prompt the query is tokenised as after another word, which itself is left out.

        Raises:
            QueryError: the query has no tokens, or does not fit the context.
        """
        query, prompt = self.clean(query), " ".join(prompt.split())
        prompt = prompt.lower() if self.config.text == "plain" else prompt
        anchor = prompt or ANCHOR
        before = self._ids(anchor)
        both = self._ids(f"{anchor} {query}") if query else before
        ids = both[len(before) :] if both[: len(before)] == before else self._ids(f" {query}")
        if not query or not ids:
            raise QueryError(
                f"query {query!r} has no tokens for {self.config.name}; give a word or phrase."
            )
        if len(before) + len(ids) > self.context // 2:
            raise QueryError(
                f"query {query[:40]!r} has {len(ids)} tokens with a prompt of {len(before)}; at "
                f"most {self.context // 2} together fit the context."
            )
        return (before if prompt else []), ids

    def _ids(self, text: str) -> list[int]:
        # A "</s>" in a caption (web texts hold such) is text, not the end of it.
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids, stripped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def load_language_model(
    config: LanguageModelConfig | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Load a causal LM by hub id or folder.

    Raises:
        LanguageModelError: missing, corrupt, or no causal LM.
    """
    config = LanguageModelConfig(name=config) if isinstance(config, str) else config
    looks_local = config.name.startswith((".", "/", "~")) or config.name.count("/") > 1
    if looks_local and not Path(config.name).is_dir():
        raise LanguageModelError(
            f"language model folder {config.name} does not exist; give a hub id, or a folder "
            "with config.json, model.safetensors and the tokenizer's files."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.name)
        model = AutoModelForCausalLM.from_pretrained(config.name, dtype=dtype)
    except Exception as error:  # transformers raises many kinds
        raise LanguageModelError(
            f"language model {config.name!r} cannot be loaded ({type(error).__name__}: {error})."
        ) from error
    return LanguageModel(model, tokenizer, config).to(device)


def _fuse_activations(model: Any) -> Any:
    """Replace GPT-2's GELU, written as eight element-wise steps, by the fused equal."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


@contextlib.contextmanager
def short_sequence_attention(device: torch.device) -> Iterator[None]:
    """On a CPU, attention by plain matrix products.

    For the few dozen tokens of a caption this is faster than the fused kernel, whose backward
    pass in bfloat16 takes two fifths of a training step.
    """
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext():
        yield
