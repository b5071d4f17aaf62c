"""Between our values and the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from kb.adapters.index_checks import unit_rows
from kb.adapters.index_facts import META, TAGS, facts_from, meta_of, number_key
from kb.errors import StoreUnavailable
from kb.ports import (
    Between,
    Every,
    Except,
    Point,
    PointHead,
    Space,
    Tagged,
    Terms,
    Where,
)
from pipelines.types import Vector

STORE = "qdrant edge"
DENSE, BM25 = "dense", "bm25"
BATCH_POINTS = 256
"""What one call of the engine is given: it holds the interpreter lock for 5 to 15 ms."""


@contextmanager
def answers(operation: str) -> Iterator[None]:
    """The engine raises plain `Exception` with a text for everything."""
    try:
        yield
    except Exception as exc:
        raise StoreUnavailable(STORE, operation, str(exc)) from exc


DENSE_PARAMS = edge.SearchParams(exact=True)


def text_params(dataset_id: UUID) -> edge.SearchParams:
    """Without a corpus the statistics would be those of all datasets together."""
    return edge.SearchParams(idf=edge.IdfParams(corpus=dataset_filter(dataset_id)))


def dataset_filter(
    dataset_id: UUID, documents: Sequence[UUID] | None = None, where: Where | None = None
) -> edge.Filter:
    """Points of the dataset, of these documents only when they are given (not empty), and those
    only that `where` holds for.
    """
    must: list[Any] = [match("dataset_id", [dataset_id])]
    if documents is not None:
        must.append(match("document_id", documents))
    if where is not None:
        must += _all_of(where)
    return edge.Filter(must=must)


def _all_of(where: Where) -> list[Any]:
    """Conditions that all hold where it does; one level less than a filter in a filter."""
    parts = where.parts if isinstance(where, Every) else (where,)
    return [_condition(part) for part in parts]


def _condition(where: Where) -> Any:
    if isinstance(where, Tagged):
        if len(where.any_of) == 1:
            return edge.FieldCondition(TAGS, match=edge.MatchValue(where.any_of[0]))
        return edge.FieldCondition(TAGS, match=edge.MatchAny(list(where.any_of)))
    if isinstance(where, Between):
        bounds = edge.RangeFloat(
            gte=None if where.open_low else where.low,
            gt=where.low if where.open_low else None,
            lte=None if where.open_high else where.high,
            lt=where.high if where.open_high else None,
        )
        return edge.FieldCondition(number_key(where.slot), range=bounds)
    if isinstance(where, Except):
        return edge.Filter(must_not=[_condition(where.part)])
    if isinstance(where, Every):
        return edge.Filter(must=_all_of(where))
    return edge.Filter(should=[_condition(part) for part in where.parts])


def match(name: str, values: Sequence[UUID]) -> edge.FieldCondition:
    """The field is one of these values, of which there is at least one."""
    if len(values) == 1:
        return edge.FieldCondition(name, match=edge.MatchValue(str(values[0])))
    return edge.FieldCondition(name, match=edge.MatchAny([str(value) for value in values]))


def dense_query(space: Space, vector: Vector) -> edge.Query:
    """Raises ValueError for a vector that this space cannot compare."""
    if space.dim is None:
        raise ValueError(f"space {space.name!r} holds no dense vectors")
    row = unit_rows(space, [vector], ["the query"])[0]
    if not row.any():
        raise ValueError("the query vector is zero; it has no direction to compare")
    return edge.Query.Nearest(row.tolist(), using=DENSE)


def text_query(query: Terms) -> edge.Query:
    """Query weight x idf x term weight, summed."""
    return edge.Query.Nearest(_sparse(query), using=BM25)


def _sparse(terms: Terms) -> edge.SparseVector:
    return edge.SparseVector(terms.ids.tolist(), terms.weights.tolist())


def to_engine(point: Point, dense: list[float] | None) -> edge.Point:
    """A point with its vector at unit length."""
    # An empty sparse vector is stored too: without it the point would not count in the idf.
    vectors: dict[str, Any] = {BM25: _sparse(point.terms)}
    if dense is not None:
        vectors[DENSE] = dense
    payload = {
        "dataset_id": str(point.dataset_id),
        "document_id": str(point.document_id),
        "segment_id": str(point.segment_id),
        "version": point.version,
        "text_hash": point.text_hash,
        META: meta_of(point.facts),
    }
    return edge.Point(point.id, vectors, payload)


def from_engine(vector: Any) -> tuple[Vector | None, Terms]:
    """What `to_engine` made of a point's vectors."""
    dense = np.array(vector[DENSE], dtype=np.float32) if DENSE in vector else None
    ids = np.array(vector[BM25].indices, dtype=np.uint32)
    weights = np.array(vector[BM25].values, dtype=np.float32)
    order = np.argsort(ids)
    return dense, Terms(ids[order], weights[order])


def head(record: edge.Record) -> PointHead:
    """A record that was read with its payload."""
    payload = record.payload or {}
    return PointHead(
        id=uuid_of(record.id),
        dataset_id=UUID(payload["dataset_id"]),
        document_id=UUID(payload["document_id"]),
        segment_id=UUID(payload["segment_id"]),
        version=payload["version"],
        text_hash=payload["text_hash"],
        facts=facts_from(payload.get(META)),
    )


def whole(record: edge.Record) -> Point:
    """A record that was read with its payload and its vectors."""
    return head(record).whole(*from_engine(record.vector))


def uuid_of(point_id: edge.PointId) -> UUID:
    """The engine's ids may be numbers in general; ours never are."""
    return point_id if isinstance(point_id, UUID) else UUID(str(point_id))


def batches(ids: Sequence[UUID]) -> Iterator[list[Any]]:
    """The ids, BATCH_POINTS at a time."""
    for start in range(0, len(ids), BATCH_POINTS):
        yield list(ids[start : start + BATCH_POINTS])
