"""The baseline of BERTScore for an encoder of one's own: what unrelated sentences score.

bert-score ships baselines for the encoders it knows. As its authors do (Zhang et al., ICLR 2020,
appendix on rescaling), the baseline is the mean score of random pairs of sentences, without idf
weights; the rescaled score is (score − baseline) / (1 − baseline).

    python -m devil.evaluation.bert_baseline --model ENCODER --sentences captions.txt \\
        --output baseline.csv

`captions.txt` holds a sentence on each line, or tab-separated columns of which the first is one;
take general sentences, not those that are scored. The file goes to `bert.baseline-path`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devil.errors import (
    ConfigError,
    DataError,
    DevilError,
    LanguageModelError,
    MissingToolError,
)
from devil.files import write_atomically

PAIRS = 10_000
COMMAND = "python -m devil.evaluation.bert_baseline"


@dataclass(frozen=True, kw_only=True)
class BertBaselineOptions:
    """Options of a baseline."""

    model: str
    """Hub id or folder of the encoder."""
    sentences: Path
    """Text file, a sentence on each line; after a tab anything may follow."""
    output: Path
    """CSV to be written."""
    pairs: int = PAIRS
    """Random pairs."""
    lower: bool = False
    """Lower-case the sentences first, as scored captions are."""
    batch_size: int = 64
    """Sentences at a time."""
    seed: int = 0
    """Of the pairs."""

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; allowed: at least {least}.")


def unrelated_pairs(sentences: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Pairs of two different sentences at random.

    Raises:
        DataError: there are no two different sentences.
    """
    different = sorted({text.strip() for text in sentences if text.strip()})
    if len(different) < 2:
        raise DataError(f"{len(different)} different sentences make no pairs; give two or more.")
    rng = np.random.default_rng(seed)
    first = rng.integers(len(different), size=count)
    second = (first + rng.integers(1, len(different), size=count)) % len(different)
    return [different[i] for i in first], [different[i] for i in second]


def bert_baseline(options: BertBaselineOptions) -> Path:
    """Write mean precision, recall and F1 of unrelated sentences for each layer.

    Returns:
        The CSV: `LAYER,P,R,F`, a row for each layer from 0, the embeddings.

    Raises:
        DataError: the sentences cannot be read or are too few, or the CSV cannot be written.
        LanguageModelError: the encoder cannot be loaded.
    """
    try:
        lines = options.sentences.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{options.sentences} holds no sentences: {error}.") from error
    texts = [line.split("\t")[0] for line in lines]
    if options.lower:
        texts = [text.lower() for text in texts]
    found, wanted = unrelated_pairs(texts, options.pairs, options.seed)
    means = _layer_means(options, found, wanted)
    rows = [["LAYER", "P", "R", "F"]]
    for layer, values in enumerate(zip(*means, strict=True)):
        rows.append([str(layer), *(f"{value:.8f}" for value in values)])
    content = "\n".join(map(",".join, rows)) + "\n"
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(options.output, content.encode())
    except OSError as error:
        raise DataError(f"{options.output} cannot be written: {error}.") from error


def _layer_means(
    options: BertBaselineOptions, found: Sequence[str], wanted: Sequence[str]
) -> list[list[float]]:
    """Mean precision, recall and F1 of the pairs, each by layer."""
    from bert_score import BERTScorer

    try:
        scorer = BERTScorer(
            model_type=options.model,
            num_layers=0,  # every layer all the same
            all_layers=True,
            lang="en",
            nthreads=0,
            batch_size=options.batch_size,
        )
        result: Any = scorer.score(found, wanted, batch_size=options.batch_size)
    except OverflowError as error:
        raise LanguageModelError(
            f"the tokenizer of {options.model} sets no model_max_length, which bert-score needs; "
            "add it to its tokenizer_config.json."
        ) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LanguageModelError(
            f"the encoder {options.model} could not be loaded: {reason}; give a hub id, or a "
            "folder with its weights and tokenizer."
        ) from error
    return [values.double().mean(dim=-1).tolist() for values in result]


def check_baseline(path: Path, layer: int) -> None:
    """Whether bert-score can rescale with a file; where there is none it would not rescale at all.

    Raises:
        MissingToolError: there is no such file, or no scores of the layer in it.
    """
    import pandas

    remedy = f"make one with {COMMAND} and give it as baseline_path, or do not rescale."
    if not path.is_file():
        raise MissingToolError(f"the baseline {path} does not exist; {remedy}")
    try:
        table = pandas.read_csv(path).to_numpy(dtype=float)
    except (OSError, ValueError) as error:
        reason = str(error).strip()
        raise MissingToolError(
            f"the baseline {path} is no table of numbers: {reason}; {remedy}"
        ) from error
    if not 0 <= layer < len(table):
        raise MissingToolError(
            f"the baseline {path} has no row of layer {layer}, only {len(table)} from 0; give "
            f"another num_layers, or {remedy}"
        )
    row = table[layer]
    if len(row) != 4 or not (np.isfinite(row).all() and (row[1:] < 1).all()):
        raise MissingToolError(
            f"the baseline {path} has {row.tolist()} for layer {layer}, not LAYER,P,R,F with "
            f"scores below 1; {remedy}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; ends with one line on an error of the user's."""
    import tyro

    options = tyro.cli(BertBaselineOptions, description=__doc__, args=arguments)
    try:
        print(bert_baseline(options))
    except DevilError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
