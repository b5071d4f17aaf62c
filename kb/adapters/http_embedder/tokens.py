"""How many tokens a text has, where nobody counts them."""

from __future__ import annotations

import math

_ASCII_PER_TOKEN = 4


def estimated_tokens(text: str) -> int:
    """Four ASCII characters, or one other character, are taken for a token; at least one."""
    plain = len(text.encode("ascii", "ignore"))
    return max(1, math.ceil(plain / _ASCII_PER_TOKEN) + len(text) - plain)


def cut_to(text: str, max_tokens: int) -> str:
    """The longest prefix with so many estimated tokens at most; `max_tokens` > 0."""
    if len(text) <= max_tokens or estimated_tokens(text) <= max_tokens:
        return text
    low, high = max_tokens, min(len(text), max_tokens * _ASCII_PER_TOKEN)
    while low < high:
        middle = (low + high + 1) // 2
        if estimated_tokens(text[:middle]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]
