"""Counts of words by kind, on captions counted by hand."""

import pytest

from devil.evaluation.language import LanguageStatistics, language_statistics


def test_counted_by_hand() -> None:
    found = language_statistics(
        ["a brown dog is running on the green grass.", "A man in a blue shirt, climbing a wall!"]
    )
    # a brown dog is running on the green grass | a man in a blue shirt climbing a wall
    assert found.words == 18
    assert found.adjectives == pytest.approx(3 / 18)
    assert found.verbs == pytest.approx(3 / 18)
    assert found.unique_words == 15


def test_nothing_said() -> None:
    assert language_statistics(["", " ", "..."]) == LanguageStatistics(
        adjectives=0.0, verbs=0.0, unique_words=0, words=0
    )
