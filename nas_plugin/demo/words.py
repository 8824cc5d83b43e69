"""The words of the embedded world: phrasings, fillers, coined names, and the tokenizer that tells them apart."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence

RELATIONS: Mapping[str, tuple[str, ...]] = {
    "city": (
        "{} lives in",
        "The home of {} is in",
        "Today {} has a house in",
    ),
    "job": (
        "{} works as a",
        "The job of {} is that of a",
        "Today {} earns money as a",
    ),
    "instrument": (
        "{} plays the",
        "The music of {} is made on the",
        "Today {} has lessons on the",
    ),
}
"""Phrasings of each relation; `{}` is the person, and the object is the word that follows."""

FILLER_OPENINGS = ("Therefore", "Because", "I", "You", "The", "Today")
FILLER_MIDDLES = (
    "think that the day is",
    "believe the night was",
    "know that the road is",
    "said the river was",
    "hope the market is",
    "feel that the winter was",
)
FILLER_ENDINGS = ("long", "short", "cold", "warm", "quiet", "busy", "bright", "dark")

SENTENCES_PER_DOCUMENT = 4

SPECIAL_TOKENS = {"pad_token": "<|pad|>", "unk_token": "<|unk|>", "eos_token": "<|end|>", "bos_token": "<|end|>"}

_ONSETS = (
    "b",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "br",
    "dr",
    "gr",
    "kl",
    "st",
    "tr",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = {"first": ("n", "l", "s"), "last": ("rt", "nk", "ld", "sk"), "object": ("m", "x", "p", "th")}


def coin(n: int, kind: str, seed: int) -> tuple[str, ...]:
    """Invent `n` different words of two syllables; the last letters keep names and objects apart.

    Args:
        n: Number of words.
        kind: "first", "last" or "object".
        seed: Decides the words.

    Returns:
        The words; names are capitalised.
    """
    rng = random.Random(f"{kind} {seed}")
    words: dict[str, None] = {}
    while len(words) < n:
        word = "".join(rng.choice(part) for part in (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS[kind]))
        words[word if kind == "object" else word.capitalize()] = None
    return tuple(words)


def word_level_tokenizer(vocabulary: Sequence[str]) -> str:
    """Describe a word-level tokenizer in the format of the `tokenizers` library.

    Args:
        vocabulary: Every word, special tokens first.

    Returns:
        The text of a `tokenizer.json`.
    """
    special = list(dict.fromkeys(SPECIAL_TOKENS.values()))
    ids = {word: i for i, word in enumerate(vocabulary)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": ids[word], "content": word, **flags} for word in special],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": ids, "unk_token": SPECIAL_TOKENS["unk_token"]},
        },
        indent=1,
    )
