"""Made texts: words as frequent as in a language, sentences of ordinary length."""

from __future__ import annotations

import random
from functools import cache
from itertools import accumulate

_SYLLABLES = (
    "ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu",
    "nar", "kel", "tis", "mon", "dra",
)  # fmt: skip
_VOCABULARY = 4000
_SENTENCE_WORDS = 14


@cache
def vocabulary() -> tuple[list[str], list[float]]:
    """Words, and weights that add up as Zipf's law says."""
    draw = random.Random(0)
    words: dict[str, None] = {}
    while len(words) < _VOCABULARY:
        words["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 4)))] = None
    weights = list(accumulate(1 / rank for rank in range(1, _VOCABULARY + 1)))
    return list(words), weights


def sentence(draw: random.Random, words: int) -> str:
    """So many words, in sentences."""
    known, weights = vocabulary()
    drawn = draw.choices(known, cum_weights=weights, k=words)
    parts = [drawn[at : at + _SENTENCE_WORDS] for at in range(0, words, _SENTENCE_WORDS)]
    return " ".join(" ".join(part).capitalize() + "." for part in parts)
