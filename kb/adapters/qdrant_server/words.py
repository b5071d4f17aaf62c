"""Between our values and the client's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client.http import models

from kb.adapters.index_checks import unit_rows
from kb.adapters.index_facts import META, TAGS, facts_from, meta_of, number_key
from kb.ports import (
    Between,
    Every,
    Except,
    Facts,
    Point,
    PointHead,
    Space,
    Tagged,
    Terms,
    Where,
)
from pipelines.types import Vector

DENSE, BM25 = "dense", "bm25"

MAX_VERSION = 2**53
"""The server compares numbers in filters as float64, exact up to here."""

_REST_NUMBER_BYTES = 26  # the longest float32 as JSON, with its comma and space
_GRPC_NUMBER_BYTES = 5  # 4 for a float32, up to 5 for a uint32
_POINT_BYTES = 450  # ids, names and punctuation, without the text hash


def dataset_filter(
    dataset_id: UUID, documents: Sequence[UUID] | None = None, where: Where | None = None
) -> models.Filter:
    """Points of the dataset, of these documents only when they are given (not empty), and those
    only that `where` holds for.
    """
    must: list[Any] = [match("dataset_id", [dataset_id])]
    if documents is not None:
        must.append(match("document_id", documents))
    if where is not None:
        must += _all_of(where)
    return models.Filter(must=must)


def _all_of(where: Where) -> list[Any]:
    """Conditions that all hold where it does; one level less than a filter in a filter."""
    parts = where.parts if isinstance(where, Every) else (where,)
    return [_condition(part) for part in parts]


def _condition(where: Where) -> Any:
    if isinstance(where, Tagged):
        if len(where.any_of) == 1:
            return models.FieldCondition(key=TAGS, match=models.MatchValue(value=where.any_of[0]))
        return models.FieldCondition(key=TAGS, match=models.MatchAny(any=list(where.any_of)))
    if isinstance(where, Between):
        bounds = models.Range(
            gte=None if where.open_low else where.low,
            gt=where.low if where.open_low else None,
            lte=None if where.open_high else where.high,
            lt=where.high if where.open_high else None,
        )
        return models.FieldCondition(key=number_key(where.slot), range=bounds)
    if isinstance(where, Except):
        return models.Filter(must_not=[_condition(where.part)])
    if isinstance(where, Every):
        return models.Filter(must=_all_of(where))
    return models.Filter(should=[_condition(part) for part in where.parts])


def labelling(
    dataset_id: UUID, documents: Sequence[UUID], facts: Facts
) -> models.SetPayloadOperation:
    """Gives all points of these documents these facts."""
    return models.SetPayloadOperation(
        set_payload=models.SetPayload(
            payload={META: meta_of(facts)}, filter=dataset_filter(dataset_id, documents)
        )
    )


def ids_filter(dataset_id: UUID, ids: Sequence[UUID]) -> models.Filter:
    """Those of the points that belong to the dataset."""
    return models.Filter(must=[match("dataset_id", [dataset_id]), has_id(ids)])


def written_until(ids: Sequence[UUID], version: int) -> models.Filter:
    """Those of the points that this version or an older one wrote."""
    bound = models.Range(lte=float(min(version, MAX_VERSION)))
    return models.Filter(must=[has_id(ids), models.FieldCondition(key="version", range=bound)])


def has_id(ids: Sequence[UUID]) -> models.HasIdCondition:
    """The point is one of these."""
    return models.HasIdCondition(has_id=[str(id) for id in ids])


def match(name: str, values: Sequence[UUID]) -> models.FieldCondition:
    """The field is one of these values, of which there is at least one."""
    if len(values) == 1:
        return models.FieldCondition(key=name, match=models.MatchValue(value=str(values[0])))
    wanted = models.MatchAny(any=[str(value) for value in values])
    return models.FieldCondition(key=name, match=wanted)


def text_params(dataset_id: UUID) -> models.SearchParams:
    """Without a corpus the statistics would be those of all datasets together."""
    corpus = models.IdfCorpusParams(corpus=dataset_filter(dataset_id))
    return models.SearchParams(idf=corpus)


def dense_query(space: Space, vector: Vector) -> list[float]:
    """Raises ValueError for a vector that this space cannot compare."""
    if space.dim is None:
        raise ValueError(f"space {space.name!r} holds no dense vectors")
    row = unit_rows(space, [vector], ["the query"])[0]
    if not row.any():
        raise ValueError("the query vector is zero; it has no direction to compare")
    values: list[float] = row.tolist()
    return values


def sparse(terms: Terms) -> models.SparseVector:
    """Terms as the server takes them."""
    return models.SparseVector(indices=terms.ids.tolist(), values=terms.weights.tolist())


def parcels(
    points: Sequence[Point],
    rows: NDArray[np.float32] | None,
    *,
    most_bytes: int,
    most_points: int,
    grpc: bool,
) -> Iterator[list[models.PointStruct]]:
    """The points in requests of at most so many bytes (one point at least) and points.

    Args:
        rows: the points' dense vectors at unit length; None in a space without.
        grpc: over gRPC a number takes 5 bytes, in JSON up to 26.
    """
    number = _GRPC_NUMBER_BYTES if grpc else _REST_NUMBER_BYTES
    parcel: list[models.PointStruct] = []
    parcel_bytes = 0
    for i, point in enumerate(points):
        numbers = 2 * len(point.terms) + (rows.shape[1] if rows is not None else 0)
        size = _POINT_BYTES + len(json.dumps(point.text_hash)) + number * numbers
        size += facts_bytes(point.facts)
        if parcel and (parcel_bytes + size > most_bytes or len(parcel) == most_points):
            yield parcel
            parcel, parcel_bytes = [], 0
        parcel.append(_to_server(point, rows[i].tolist() if rows is not None else None))
        parcel_bytes += size
    if parcel:
        yield parcel


def facts_bytes(facts: Facts) -> int:
    """At most so many bytes of a request."""
    return len(json.dumps(meta_of(facts))) + 20 * len(facts.numbers)


def _to_server(point: Point, dense: list[float] | None) -> models.PointStruct:
    # An empty sparse vector is stored too: without it the point would not count in the idf.
    vectors: dict[str, Any] = {BM25: sparse(point.terms)}
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
    return models.PointStruct(id=str(point.id), vector=vectors, payload=payload)


def from_server(vectors: Any) -> tuple[Vector | None, Terms]:
    """What was stored as a point's vectors."""
    vectors = vectors or {}
    dense = np.array(vectors[DENSE], dtype=np.float32) if DENSE in vectors else None
    stored = vectors.get(BM25) or models.SparseVector(indices=[], values=[])
    ids = np.array(stored.indices, dtype=np.uint32)
    weights = np.array(stored.values, dtype=np.float32)
    order = np.argsort(ids)
    return dense, Terms(ids[order], weights[order])


def head(record: models.Record) -> PointHead:
    """A record that was read with its payload."""
    payload = record.payload or {}
    return PointHead(
        id=UUID(str(record.id)),
        dataset_id=UUID(payload["dataset_id"]),
        document_id=UUID(payload["document_id"]),
        segment_id=UUID(payload["segment_id"]),
        version=int(payload["version"]),
        text_hash=payload["text_hash"],
        facts=facts_from(payload.get(META)),
    )


def whole(record: models.Record) -> Point:
    """A record that was read with its payload and its vectors."""
    return head(record).whole(*from_server(record.vector))
