"""Pairs of a question and an answer: how they become chunks and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.types import Chunk, Origin


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, on one line, and its answer; neither is blank."""

    question: str
    answer: str
    origin: Origin


def written_down(pairs: Sequence[Pair]) -> tuple[tuple[Chunk, ...], str]:
    """A chunk per pair, and the text that their offsets point into: blocks of `Q1: ... A1: ...`."""
    chunks: list[Chunk] = []
    parts: list[str] = []
    at = 0
    for position, pair in enumerate(pairs, start=1):
        text = f"Q{position}: {pair.question}\nA{position}: {pair.answer}"
        chunks.append(
            Chunk(pair.question, at, at + len(text), position, pair.origin, answer=pair.answer)
        )
        parts.append(text)
        at += len(text) + 2
    return tuple(chunks), "\n\n".join(parts)
