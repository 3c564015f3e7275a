"""Some parts of a feature store in memory: their training rows' features and tokenised captions."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from devil.errors import CaptionError, FeatureStoreError
from devil.features import FeatureStore, tensor_column
from devil.held_out import Split
from devil.language_model import LanguageModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Rows in memory."""

    columns: Mapping[str, np.ndarray]
    """Per slot, as stored: draws (row, 1 + draws, channels), maps, or class tokens."""
    captions: Sequence[Sequence[Sequence[int]]]
    """Token ids of each row's captions, without those that are too long."""


class ChunkReader:
    """Reads chunks, and keeps the last one."""

    def __init__(
        self,
        store: FeatureStore,
        language_model: LanguageModel,
        split: Split,
        columns: Mapping[str, str],
        max_caption_tokens: int,
    ) -> None:
        """Take what is read.

        Args:
            store: the features.
            language_model: tokenises the captions.
            split: says which rows of each part are wanted.
            columns: of the store, by slot.
            max_caption_tokens: longer captions are left out, and counted.
        """
        self.store, self.lm, self.split, self.columns = store, language_model, split, columns
        self.max_caption_tokens = max_caption_tokens
        self.left_out: dict[str, int] = {}
        """Captions too long for training, by part that was read so far."""
        self._cached: tuple[tuple[str, ...], Chunk] | None = None

    def __call__(self, parts: tuple[str, ...]) -> Chunk:
        """The rows of some parts, one part after the other.

        Raises:
            FeatureStoreError: a part cannot be read, or has other rows by now.
        """
        if self._cached is None or self._cached[0] != parts:
            self._cached = None  # let go of the old chunk before the new one is read
            self._cached = (parts, self._read(parts))
        return self._cached[1]

    def keys(self, parts: Sequence[str]) -> list[str]:
        """Keys of the same rows, read again: they are too many to be kept."""
        found: list[str] = []
        for part in parts:
            keys = self.store.keys(part)
            found += [keys[row] for row in self.split.rows(part)]
        return found

    def _read(self, parts: Sequence[str]) -> Chunk:
        tables = []
        for part in parts:
            table = self.store.read(part, ["captions", *self.columns.values()])
            if table.num_rows != self.split.sizes[part]:
                raise FeatureStoreError(
                    f"{part} has {table.num_rows} rows, and had {self.split.sizes[part]} when the "
                    "training began: its shard was extracted anew. Train on what is there now, "
                    "with another --output."
                )
            tables.append(table.take(self.split.rows(part)))
        columns = {
            slot: np.concatenate([tensor_column(table, name) for table in tables])
            for slot, name in self.columns.items()
        }
        captions: list[list[list[int]]] = []
        for part, table in zip(parts, tables, strict=True):
            captions += self._tokenise(part, table.column("captions").to_pylist())
        return Chunk(columns, captions)

    def _tokenise(self, part: str, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        result: list[list[list[int]]] = [[] for _ in rows]
        problems = []
        for ids, captions in zip(result, rows, strict=True):
            for caption in captions:
                try:
                    ids.append(self.lm.caption_ids(caption, limit=self.max_caption_tokens))
                except CaptionError as error:
                    problems.append(error)
        if problems and part not in self.left_out:
            logger.warning("%s: %d captions left out: %s", part, len(problems), problems[0])
        self.left_out[part] = len(problems)
        return result
