"""BERTScore (Zhang et al., ICLR 2020) of captions, by the package bert-score.

The encoder is the user's choice; what it lacks to be used is said in the words of its options.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from devil.errors import ConfigError, MissingToolError
from devil.evaluation.bert_baseline import COMMAND, check_baseline


@dataclass(frozen=True, kw_only=True)
class BertScoreConfig:
    """How BERTScore is computed."""

    model: str = ""
    """Hub id or folder of the encoder; empty: BERTScore is left out."""
    num_layers: int | None = None
    """Layer whose embeddings are compared; needed for a model that bert-score does not know."""
    idf: bool = False
    """Weigh tokens by their rarity in the references."""
    rescale_with_baseline: bool = False
    """Set the score of unrelated sentences to 0."""
    baseline_path: str | None = None
    """CSV of these scores by layer; needed to rescale with a model of your own."""
    lower: bool = False
    """Lower-case captions and references first."""
    batch_size: int = 64
    """Sentences at a time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; allowed: at least 1.")


def bert_f1(
    captions: Sequence[str], references: Sequence[Sequence[str]], config: BertScoreConfig
) -> list[float]:
    """BERTScore of each caption, F1 with the best of its references; an empty one scores 0.

    With `config.idf`, tokens are counted in these references.

    Raises:
        MissingToolError: the encoder, its layer or its baseline is not given, or cannot be used.
    """
    if not config.model:
        raise MissingToolError(
            "BERTScore needs an encoder: name one, such as roberta-large, or its folder."
        )
    import bert_score
    from bert_score.utils import model2layers

    if config.num_layers is None and config.model not in model2layers:
        raise MissingToolError(
            f"bert-score does not know {config.model}: give num_layers, the layer to compare."
        )
    if config.rescale_with_baseline:
        layer = model2layers[config.model] if config.num_layers is None else config.num_layers
        check_baseline(_baseline_file(config), layer)
    result = [0.0] * len(captions)
    rows = [row for row, text in enumerate(captions) if text.strip()]  # an empty one stops it
    if not rows:
        return result
    change = str.lower if config.lower else str
    found = [change(captions[row]) for row in rows]
    every = [[change(text) for text in texts] for texts in references]
    wanted = [every[row] for row in rows]
    try:
        idf: Any = _rarity(every, config.model) if config.idf else False
        scores: Any = bert_score.score(
            found,
            wanted,
            model_type=config.model,
            num_layers=config.num_layers,
            idf=idf,
            rescale_with_baseline=config.rescale_with_baseline,
            baseline_path=config.baseline_path,
            lang="en",
            batch_size=config.batch_size,
            nthreads=0,
        )
    except OverflowError as error:
        raise MissingToolError(
            f"the tokenizer of {config.model} sets no model_max_length, which bert-score needs; "
            "add it to its tokenizer_config.json."
        ) from error
    except AssertionError as error:  # bert-score's own check of the layer
        raise MissingToolError(
            f"num_layers is {config.num_layers} for {config.model}; give one that it has: {error}."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise MissingToolError(f"{config.model} could not be loaded: {error}") from error
    for row, value in zip(rows, scores[2].tolist(), strict=True):
        result[row] = value
    return result


def _rarity(references: Sequence[Sequence[str]], model: str) -> Mapping[int, float]:
    """Inverse document frequencies of tokens in all references, as bert-score counts them.

    Of all: those of rows without a caption count, too, so that captions from several sources are
    weighed alike.
    """
    from bert_score.utils import get_idf_dict, get_tokenizer

    texts = [text for each in references for text in each]
    return get_idf_dict(texts, get_tokenizer(model), nthreads=0)


def _baseline_file(config: BertScoreConfig) -> Path:
    """The CSV that is given, or the one that bert-score ships for the encoder."""
    import bert_score

    if config.baseline_path:
        return Path(config.baseline_path)
    if Path(config.model).is_dir():
        raise MissingToolError(
            f"rescaling with the folder {config.model} needs baseline_path, a CSV of baselines; "
            f"make one with {COMMAND}."
        )
    return Path(bert_score.__path__[0], "rescale_baseline", "en", f"{config.model}.tsv")
