"""Judging texts by hand-worked examples."""

from __future__ import annotations

import math

import pytest

from nas_plugin.evaluation.measures.texts import TermStatistics, contains, ngram_entropy, normalised, starts_with

STARTS = [
    (" Rome, the capital", "Rome", True),
    ("rome\n", "Rome", True),
    ("The Beatles", "the beatles", True),
    ("Romeo and Juliet", "Rome", False),
    ("the Rome", "Rome", False),
    ("New York City", "New York", True),
    ("New\u00a0York.", "New York", True),
    ("New", "New York", False),
    ("57 years", "5", False),
    ("U.K. citizens", "U K", True),
    ("Ḥusayn said", "Ḥusayn", True),
    ("ﬁve", "five", True),
    ("STRASSE", "Straße", True),
    ("", "Rome", False),
    ("anything", "?", False),
]


@pytest.mark.parametrize(("text", "answer", "expected"), STARTS)
def test_starts_with(text: str, answer: str, expected: bool) -> None:
    assert starts_with(text, answer) is expected


CONTAINS = [
    ("It is spoken in Arabic.", "arabic", True),
    ("They are there", "ar", False),
    ("the United Kingdom of Great Britain", "Great Britain", True),
    ("Great, Britain!", "Great Britain", True),
    ("Britain Great", "Great Britain", False),
    ("ends with Rome", "Rome", True),
    ("anything", "!", False),
    ("", "Rome", False),
]


@pytest.mark.parametrize(("text", "answer", "expected"), CONTAINS)
def test_contains(text: str, answer: str, expected: bool) -> None:
    assert contains(text, answer) is expected


def test_normalised() -> None:
    assert normalised("  The “U.S.” isn't\tＡＢＣ—1st ") == ["the", "u", "s", "isn", "t", "abc", "1st"]


def test_entropy_by_hand() -> None:
    # Bigrams ab, ba, ab: 2/3 and 1/3. Trigrams aba, bab: 1/2 each, 1 bit.
    two = 2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3)
    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * two + 4 / 3 * 1) / 2)
    # Eight different bigrams, 3 bits; seven different trigrams.
    assert ngram_entropy("a b c d e f g h i") == pytest.approx((2 / 3 * 3 + 4 / 3 * math.log2(7)) / 2)
    assert ngram_entropy("a a a a a a") == 0.0
    assert ngram_entropy("a") == ngram_entropy("") == 0.0
    assert ngram_entropy("a b") == 0.0


def test_entropy_counts_signs_and_keeps_inner_apostrophes_and_hyphens() -> None:
    assert ngram_entropy("don't re-do, now.") == ngram_entropy("v w x y z")
    assert ngram_entropy("Now now") == 0.0


REFERENCES = [
    "Lyon is a city in France. Lyon has a river.",
    "Manila is the capital city of the Philippines.",
    "A river runs through the city, and the city is old.",
]
# By TfidfVectorizer().fit(REFERENCES) and cosine_similarity of scikit-learn.
SIMILAR = [
    ("Lyon is twinned with Manila, a city.", REFERENCES[1], 0.3903537780729741),
    ("The river is old; the river is in Lyon's city.", REFERENCES[0], 0.5908332762701624),
    ("Nothing known here", REFERENCES[0], 0.0),
    (REFERENCES[2], REFERENCES[2], 1.0),
]


@pytest.mark.parametrize(("left", "right", "expected"), SIMILAR)
def test_similarity_equals_scikit_learn(left: str, right: str, expected: float) -> None:
    statistics = TermStatistics.of(REFERENCES)
    assert statistics.similarity(left, right) == pytest.approx(expected, abs=1e-12)
    assert statistics.similarity(right, left) == pytest.approx(expected, abs=1e-12)


def test_similarity_by_hand() -> None:
    statistics = TermStatistics.of(["aa bb", "aa"])
    # aa is in 2 of 2: ln(3/3) + 1 = 1. bb is in 1 of 2: ln(3/2) + 1.
    rare = math.log(1.5) + 1
    assert statistics.similarity("aa bb bb", "bb") == pytest.approx(2 * rare / math.hypot(1, 2 * rare))
    assert TermStatistics.of([]).similarity("aa", "aa") == 0.0
