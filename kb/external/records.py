"""What a service answers: records of the external-knowledge contract, checked one by one."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Any

from kb.errors import ExternalKnowledgeFailed

_SHOWN = 200
_LARGEST = 1e300  # an integer beyond this is no float


@dataclass(frozen=True, slots=True)
class ExternalHit:
    """A record that answers.

    Attributes:
        id: made of the dataset, the title and the content, so that the same record has the same.
        score: as the service gives it; higher is better.
        metadata: never None.
    """

    id: uuid.UUID
    dataset_id: uuid.UUID
    content: str
    title: str
    score: float
    metadata: dict[str, Any]

    @property
    def document_id(self) -> str:
        """What the service calls the document, or else its title."""
        named = self.metadata.get("document_id")
        return str(named) if named not in (None, "") else self.title


def read_records(body: bytes, dataset_id: uuid.UUID, who: str) -> list[ExternalHit]:
    """The records of an answer, best first; equal scores stay in the order given.

    Args:
        who: as messages call the service.
    Raises:
        ExternalKnowledgeFailed: it is not an answer of the contract; the message says where.
    """
    try:
        answer = _parsed(body)
    except (ValueError, RecursionError) as exc:
        raise ExternalKnowledgeFailed(f"{who} answered with no JSON: {_short(body)}") from exc
    if not isinstance(answer, dict):
        raise ExternalKnowledgeFailed(f"{who} answered with no JSON object: {_short(body)}")
    records = answer.get("records")
    if records is None:
        return []
    if not isinstance(records, list):
        raise ExternalKnowledgeFailed(
            f"{who} answered with records that are no list: {_short(records)}"
        )
    hits = [_hit(record, at, dataset_id, who) for at, record in enumerate(records)]
    return sorted(hits, key=lambda hit: -hit.score)


def _hit(record: Any, at: int, dataset_id: uuid.UUID, who: str) -> ExternalHit:
    def wrong(what: str) -> ExternalKnowledgeFailed:
        return ExternalKnowledgeFailed(f"{who} answered with records[{at}]{what}")

    if not isinstance(record, dict):
        raise wrong(f" that is no object: {_short(record)}")
    content, score = record.get("content"), record.get("score")
    title, metadata = record.get("title"), record.get("metadata")
    if not isinstance(content, str):
        raise wrong(f".content that is no text: {_short(content)}")
    score = 0.0 if score is None else score
    if isinstance(score, bool) or not isinstance(score, int | float) or abs(score) > _LARGEST:
        raise wrong(f".score that is no number: {_short(score)}")
    if title is not None and not isinstance(title, str):
        raise wrong(f".title that is no text: {_short(title)}")
    if metadata is not None and not isinstance(metadata, dict):
        raise wrong(f".metadata that is no object: {_short(metadata)}")
    title = title or ""
    seal = sha256(f"{title}\0{content}".encode()).hexdigest()
    return ExternalHit(
        id=uuid.uuid5(dataset_id, seal),
        dataset_id=dataset_id,
        content=content,
        title=title,
        score=float(score),
        metadata=metadata or {},
    )


def _parsed(body: bytes) -> Any:
    """JSON without NaN and Infinity, and without lone surrogates, which no answer of ours holds."""
    answer = json.loads(body, parse_constant=_finite, parse_float=_finite)
    if b"\\ud" not in body.lower():
        return answer
    return json.loads(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is not a JSON number")
    return number


def _short(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
