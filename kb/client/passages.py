"""What a search gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kb.client.wire import Json


@dataclass(frozen=True)
class Passage:
    """A piece of a document that answers a query.

    Attributes:
        score: in [0, 1], higher is better.
        text: of a question with an answer, the question.
        answer: None in documents of other forms.
        source: where the passage stands: `start` and `end` (characters of the extracted text)
            and, as far as the format has them, `page`, `page_end`, `headings`, `sheet`, `rows`.
        children: the parts that matched, of a passage that was found by its parts.
        explanation: how the score came about, when it was asked for.
    """

    score: float
    text: str
    document: str
    document_id: str
    segment_id: str
    position: int
    source: Json
    answer: str | None = None
    children: tuple[Json, ...] = ()
    explanation: Json | None = None

    @staticmethod
    def of_item(item: Json) -> Passage:
        """An item of a knowledge-retrieval answer; ids of other services' are empty."""
        metadata = item["metadata"]
        return Passage(
            score=metadata["score"],
            text=item["content"],
            document=item["title"],
            document_id=metadata["document_id"],
            segment_id=metadata["segment_id"] or "",
            position=metadata["segment_position"],
            source={},
            children=tuple(metadata["child_chunks"]),
        )

    @staticmethod
    def of(record: Json) -> Passage:
        """A record of a retrieve answer."""
        segment = record["segment"]
        return Passage(
            score=record["score"],
            text=segment["content"],
            document=segment["document"]["name"],
            document_id=segment["document"]["id"],
            segment_id=segment["id"],
            position=segment["position"],
            source=segment.get("source") or {},
            answer=segment.get("answer"),
            children=tuple(record.get("child_chunks") or ()),
            explanation=record.get("explain"),
        )


@dataclass(frozen=True)
class Answer:
    """What a search found, best passage first; iterates over the passages.

    Attributes:
        timings_ms: milliseconds per stage in the server, when an explanation was asked for.
        raw: the body as it came.
    """

    passages: tuple[Passage, ...]
    raw: Json = field(repr=False)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Passage]:
        return iter(self.passages)

    def __len__(self) -> int:
        return len(self.passages)
