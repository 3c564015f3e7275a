"""Caption scores: pycocoevalcap's own numbers, and captions that must not shift its lines."""

import hashlib
import os
from collections.abc import Mapping, Sequence

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from devil.errors import DataError
from devil.evaluation.captioning import caption_scores, java_on_path, tokenize

REFERENCES = {
    "1": ["A dog runs through the snow.", "The brown dog is running in the snow"],
    "2": ["Two children play football on the grass.", "kids with a ball, outside"],
    "3": ["a man in a red shirt climbs a steep rock", "a climber on a rock face"],
    "4": ["a boat on the calm sea at sunset"],
}
CANDIDATES = {
    "1": "a dog is running through deep snow",
    "2": "Children play with a ball on the grass!",
    "3": "a man stands on a rock",
    "4": "a boat on the sea",
}


def perfect(references: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {key: texts[0] for key, texts in references.items()}


def test_equals_pycocoevalcap() -> None:
    rows = {k: [{"caption": t} for t in texts] for k, texts in REFERENCES.items()}
    with java_on_path():
        wanted = PTBTokenizer().tokenize(rows)
        found = PTBTokenizer().tokenize({k: [{"caption": t}] for k, t in CANDIDATES.items()})
    bleu, _ = Bleu(4).compute_score(wanted, found, verbose=0)
    scores = caption_scores(CANDIDATES, REFERENCES)
    assert scores.bleu_1 == pytest.approx(bleu[0], rel=1e-12)
    assert scores.bleu_4 == pytest.approx(bleu[3], rel=1e-12)
    assert scores.rouge_l == pytest.approx(Rouge().compute_score(wanted, found)[0], rel=1e-12)
    assert scores.cider == pytest.approx(Cider().compute_score(wanted, found)[0], rel=1e-12)
    assert 0 < scores.cider and scores.rows == 4


def test_perfect_captions_beat_shuffled_and_constant_ones() -> None:
    best = caption_scores(perfect(REFERENCES), REFERENCES)
    assert best.bleu_1 == pytest.approx(1.0, abs=1e-9)
    assert best.rouge_l == pytest.approx(1.0, abs=1e-9)
    texts = list(perfect(REFERENCES).values())
    shuffled = dict(zip(REFERENCES, [*texts[1:], texts[0]], strict=True))
    for worse in (shuffled, dict.fromkeys(REFERENCES, texts[0])):
        scores = caption_scores(worse, REFERENCES)
        assert scores.cider < best.cider / 2 and scores.bleu_1 < 0.6 and scores.rouge_l < 0.6


def test_no_caption_shifts_the_others() -> None:
    odd = ["", "  ", "!!!", ".", "a\rb", "a\nb", "a\u2028b\x0bc", "\x85", "☃ é", "( a"]
    captions = {}
    for index, text in enumerate(odd):
        captions |= {f"{index}a": [f"word{index} here"], f"{index}b": [text, "more", text]}
    found = tokenize({**captions, "last": ["the end"]})
    assert found["last"] == ["the end"]
    for index in range(len(odd)):
        assert found[f"{index}a"] == [f"word{index} here"]
        assert len(found[f"{index}b"]) == 3 and found[f"{index}b"][1] == "more"
    assert found["4b"][0] == found["5b"][0] == "a b"


def test_captions_without_words_score_nothing() -> None:
    scores = caption_scores({**perfect(REFERENCES), "3": "", "4": "!!!"}, REFERENCES)
    assert scores.rouge_l == pytest.approx(2 / 4) and scores.rows == 4
    assert scores.cider > 0


def test_keys_are_recorded() -> None:
    scores = caption_scores(CANDIDATES, REFERENCES)
    assert scores.keys_hash == hashlib.sha256(b"1\n2\n3\n4").hexdigest()[:16]
    turned = dict(reversed(CANDIDATES.items()))
    assert caption_scores(turned, {**REFERENCES, "5": ["unused"]}) == scores
    fewer = {k: v for k, v in CANDIDATES.items() if k != "4"}
    assert caption_scores(fewer, REFERENCES).keys_hash != scores.keys_hash


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="there are no captions"):
        caption_scores({}, REFERENCES)
    with pytest.raises(DataError, match=r"without references: \['5', '6'\]"):
        caption_scores({"1": "a", "5": "b", "6": "c"}, {**REFERENCES, "6": []})


def test_environment_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    tokenize({"1": ["a dog"]})
    assert dict(os.environ) == before
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"
