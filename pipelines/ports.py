"""What a node may ask of the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel

from pipelines.types import Chunked, Vector, Vectors

Shape = TypeVar("Shape", bound=BaseModel)


class Embedder(Protocol):
    """Turns texts into vectors of one embedding space."""

    @property
    def id(self) -> str:
        """Stable name of the embedding space; same id and text, same vector."""
        ...

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Text beyond this many tokens does not influence the vector."""
        ...

    def embed_documents(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """float32[n, dim], L2-normalised, in the order of `texts`; n may be 0.

        Args:
            urgent: somebody waits for these few texts: they come ahead of other documents, and
                are given up as soon as a query would be. The vectors are the same.
        Raises:
            TransientError: the model's server did not answer; safe to retry. Its `done` holds
                what was embedded before.
            RateLimited: the server asks to come later.
        """
        ...

    def embed_query(self, text: str) -> Vector:
        """float32[dim], L2-normalised. Answers quickly even while documents are embedded.

        Raises:
            TransientError: the model's server did not answer; safe to retry.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text as the model counts them, without truncation."""
        ...


class Chat(Protocol):
    """Asks a chat model. May be called from any thread."""

    def ask(self, shape: type[Shape], instruction: str, text: str) -> Shape:
        """What the model makes of a text, validated. The same question is paid for once.

        Args:
            instruction: what to do with the text.
        Raises:
            TransientError: the model's server did not answer, or with nothing of this shape.
            RateLimited: the server asks to come later.
        """
        ...


class ChunkSink(Protocol):
    """Where a run's chunks go. Every call is safe to repeat."""

    def store(
        self, chunked: Chunked, embed: Callable[[Sequence[str]], Vectors] | None
    ) -> tuple[int, int]:
        """Keep the chunks and put what is not yet there into the index.

        Args:
            embed: texts -> float32[n, dim]; None stores for full-text search only.
        Returns:
            (segments, points) that the document now has.
        """
        ...


RunId = UUID
