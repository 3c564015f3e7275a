"""What kind of language a layer is put in: adjectives, verbs, vocabulary (DeViL, Table 4).

Words are tagged by TextBlob's pattern tagger, whose English lexicon comes with the package.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LanguageStatistics:
    """Counts over the words of many captions; punctuation is no word."""

    adjectives: float
    """Share of words tagged as adjectives (Penn JJ, JJR, JJS)."""
    verbs: float
    """Share of words tagged as verbs (Penn VB, VBD, VBG, VBN, VBP, VBZ, MD)."""
    unique_words: int
    """Different words, in lower case."""
    words: int


def language_statistics(captions: Iterable[str]) -> LanguageStatistics:
    """Count the words of captions; without any word, both shares are 0."""
    from textblob.taggers import PatternTagger

    tagger = PatternTagger()
    tagged = [
        (word.lower(), tag)
        for caption in captions
        for word, tag in tagger.tag(caption.strip())
        if any(character.isalnum() for character in word)
    ]
    total = max(len(tagged), 1)
    return LanguageStatistics(
        adjectives=sum(tag.startswith("JJ") for _, tag in tagged) / total,
        verbs=sum(tag.startswith("VB") or tag == "MD" for _, tag in tagged) / total,
        unique_words=len({word for word, _ in tagged}),
        words=len(tagged),
    )
