"""Judging texts: does one begin with an answer or contain it, how varied are its words, how near is it to others."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# A word with its inner apostrophes and hyphens, or a single sign.
_WORD_OR_SIGN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
# The term pattern of scikit-learn's TfidfVectorizer.
_TERM = re.compile(r"\b\w\w+\b")


def normalised(text: str) -> list[str]:
    """Split a text into comparable words: Unicode NFKC, case folded, punctuation and spacing left out."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def starts_with(text: str, answer: str) -> bool:
    """Say whether a text's first words are those of the answer; an answer without letters and digits is never found."""
    wanted = normalised(answer)
    return bool(wanted) and normalised(text)[: len(wanted)] == wanted


def contains(text: str, answer: str) -> bool:
    """Say whether the answer's words occur in a text one after the other, as whole words."""
    wanted, given = normalised(answer), normalised(text)
    return bool(wanted) and any(given[i : i + len(wanted)] == wanted for i in range(len(given)))


def ngram_entropy(text: str) -> float:
    """Measure how little a text repeats itself: (2/3 H_2 + 4/3 H_3) / 2, H_n the entropy of its n-grams of words.

    Source: Zhang et al. (2018), as used by ROME and in the paper's Eq. 25.

    Args:
        text: Text; words are runs of letters and digits with inner apostrophes and hyphens, every other sign counts alone.

    Returns:
        Bits; 0 for a text of fewer than two words.
    """
    words = _WORD_OR_SIGN.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())


@dataclass(frozen=True)
class TermStatistics:
    """In how many documents each term occurs; the formula of scikit-learn's TfidfVectorizer with its defaults.

    Written out here, because it is three lines and needs no package that way.

    Attributes:
        documents: Number of documents.
        frequencies: Term -> documents that hold it. Other terms do not count.
    """

    documents: int
    frequencies: Mapping[str, int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> TermStatistics:
        """Count terms, each text being one document."""
        documents = [set(_TERM.findall(text.lower())) for text in texts]
        return cls(len(documents), Counter(term for document in documents for term in document))

    def similarity(self, left: str, right: str) -> float:
        """Return the cosine of two texts' TF-IDF vectors, 0 to 1; 0 if one of them has no known term.

        A term's weight is its count times ln((1 + documents) / (1 + documents with it)) + 1.
        """
        a, b = self._weights(left), self._weights(right)
        norms = math.hypot(*a.values()) * math.hypot(*b.values())
        return sum(weight * b.get(term, 0.0) for term, weight in a.items()) / norms if norms else 0.0

    def _weights(self, text: str) -> dict[str, float]:
        counts = Counter(term for term in _TERM.findall(text.lower()) if term in self.frequencies)
        return {
            term: count * (math.log((1 + self.documents) / (1 + self.frequencies[term])) + 1)
            for term, count in counts.items()
        }
