"""Reserved keys and values behave as transformers' own growing ones."""

from pathlib import Path

import tiny
import torch
import transformers
from transformers import DynamicCache

from devil.cache import ReservedCache, ReservedLayer, reserved_cache
from devil.language_model import LanguageModel

ROWS, ROOM = 5, 12


def states(length: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 2, length, 4, generator=generator)
    return keys, values


def test_layer_equals_the_growing_one() -> None:
    ours, theirs = ReservedLayer(ROWS, ROOM), DynamicCache()

    def both(length: int, rows: int, seed: int) -> None:
        given = states(length, rows, seed)
        found, expected = ours.update(*given), theirs.update(*given, layer_idx=0)
        assert all(map(torch.equal, found, expected))
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(3) == theirs.layers[0].get_mask_sizes(3)

    def select(*rows: int) -> None:
        ours.batch_select_indices(torch.tensor(rows))
        theirs.batch_select_indices(torch.tensor(rows))

    both(3, 4, 0)
    memory = ours.reserved[0].data_ptr()
    both(1, 4, 1)
    ours.crop(-2)
    theirs.crop(-2)
    both(2, 4, 2)
    select(0, 3, 2)  # one left, the last fills its place
    both(1, 3, 3)
    select(2, 1, 0, 0, 2)  # two change places, two split
    both(1, 5, 4)
    select(3)
    both(1, 1, 5)
    assert ours.reserved[0].data_ptr() == memory
    ours.begin()
    assert ours.get_seq_length() == 0


def test_windows_that_are_never_left_are_plain_attention() -> None:
    config = transformers.MistralConfig(sliding_window=8, num_hidden_layers=2)
    assert isinstance(reserved_cache(config, 1, 7), ReservedCache)
    assert reserved_cache(config, 1, 8) is None
    assert reserved_cache(transformers.MambaConfig(num_hidden_layers=2), 1, 4) is None


def test_beginning_follows_the_weights(tmp_path: Path) -> None:
    lm: LanguageModel = tiny.load_tiny_language_model(tmp_path, "opt")
    assert lm.beginning is not None and lm.beginning[0][0].dtype == torch.float32
    lm.double()
    assert lm.beginning[0][0].dtype == torch.float64
    assert tiny.load_tiny_language_model(tmp_path / "none", "qwen2").beginning is None
