"""The index itself: writing, asking, looking, upkeep."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import qdrant_edge as edge

from kb.adapters.index_checks import check_limit, check_terms, dense_rows
from kb.adapters.index_facts import META, alike, meta_of, slots_in
from kb.adapters.index_ranking import evened, ranked
from kb.adapters.qdrant_edge.shards import UPKEEP_POINTS, Room, Shard, Shards
from kb.adapters.qdrant_edge.words import (
    BATCH_POINTS,
    DENSE_PARAMS,
    answers,
    batches,
    dataset_filter,
    dense_query,
    from_engine,
    head,
    match,
    text_params,
    text_query,
    to_engine,
    uuid_of,
    whole,
)
from kb.errors import StoreUnavailable
from kb.ports import Facts, Point, PointHead, Scored, Space, Terms, Where, slots_of
from pipelines.types import Vector

_SCAN_POINTS = 512
_DELETE_FLOOR_BYTES = 64 * 2**20  # deletes free space, but the log that they go through grows first


class QdrantEdgeIndex:
    """SegmentIndex over Qdrant Edge: exact dense search, BM25 as sparse vectors, no server.

    Dense vectors are brought to unit length before they are stored (in float64, rounded to
    float32; unit vectors are left as they are); `vectors` gives them back so, bit by bit. A zero
    vector stays zero and scores 0.
    Text scores that differ by rounding only (5e-7 of their size) are made equal within a call:
    the engine adds up a text's terms in an order that depends on the segment that holds it, so
    equal texts would not tie.

    Args:
        directory: made when missing; belongs to this index alone.
        max_search_threads: of the engine, per shard.
        segment_kb: the engine seals what is written in pieces of about this size. When nobody
            calls `optimize`, the writer does so from twice as much on.
        min_free_bytes, min_free_share: writing stops when the disk has less free than the larger
            of the two. The engine maps its files into memory, so a full disk would kill the
            process instead of raising an error.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_search_threads: int = 2,
        segment_kb: int = 10_000,
        min_free_bytes: int = 256 * 2**20,
        min_free_share: float = 0.05,
    ) -> None:
        self._room = Room(directory, min_free_bytes, min_free_share)
        self._shards = Shards(
            directory, self._room, max_search_threads=max_search_threads, segment_kb=segment_kb
        )
        self._overdue_bytes = 2_000 * segment_kb

    # -- spaces

    def ensure_space(self, space: Space) -> None:
        """Make the shard if it is not there; repeats safely.

        Raises:
            ValueError: it exists with another `dim`, or the name or `dim` cannot be used.
            StoreUnavailable: another process has the directory, or the disk is almost full.
        """
        self._shards.ensure(space)

    # -- writing

    def upsert(self, space: Space, points: Sequence[Point]) -> None:
        """Write points; a point whose id is known is replaced whole.

        Raises:
            ValueError: a vector of a wrong length, not finite or missing, terms out of order, or
                an id twice; then nothing is stored.
            StoreUnavailable: the disk is almost full, or the engine failed.
        """
        shard = self._shards.open(space)
        dense = dense_rows(space, points)
        shard.index_slots(slots_in({point.id: point.facts for point in points}))
        for start in range(0, len(points), BATCH_POINTS):
            batch = points[start : start + BATCH_POINTS]
            rows = dense[start : start + BATCH_POINTS].tolist() if dense is not None else None
            operation = edge.UpdateOperation.upsert_points(
                [to_engine(point, rows[i] if rows else None) for i, point in enumerate(batch)]
            )
            with shard.writing:
                self._room.refuse_when_full("upsert")
                with answers("upsert"):
                    shard.engine.update(operation)
                shard.unkept_points += len(batch)
                shard.unkept_bytes += sum(
                    4 * (space.dim or 0) + 8 * len(point.terms) for point in batch
                )
                if shard.unkept_bytes > self._overdue_bytes:
                    self._keep_up(shard)

    def label(self, space: Space, dataset_id: UUID, facts: Mapping[UUID, Facts]) -> None:
        """Give all points of these documents these facts in place of those that they have."""
        shard = self._shards.open(space)
        shard.index_slots(slots_in(facts))
        for given, documents in alike(facts, most=BATCH_POINTS):
            operation = edge.UpdateOperation.set_payload_by_filter(
                dataset_filter(dataset_id, documents), {META: meta_of(given)}
            )
            with shard.writing:
                self._room.refuse_when_full("label")
                with answers("label"):
                    shard.engine.update(operation)
        # At the end: upkeep in between would seal what the next call changes again.
        shard.unkept_points += len(facts)

    def flush(self, space: Space) -> None:
        """Make all that was written survive a loss of power; 15-90 ms."""
        shard = self._shards.open(space)
        with shard.writing, answers("flush"):
            shard.engine.flush()

    def delete(self, space: Space, ids: Sequence[UUID], *, up_to_version: int) -> None:
        """Remove those of the points that were written by version `up_to_version` or before."""
        shard = self._shards.open(space)
        for batch in batches(ids):
            with shard.writing:
                with answers("delete"):
                    records = shard.engine.retrieve(batch, ["version"], False)
                self._remove(
                    shard,
                    [r.id for r in records if (r.payload or {})["version"] <= up_to_version],
                )

    def delete_document(self, space: Space, dataset_id: UUID, document_id: UUID) -> None:
        """Remove every point of a document; 10 ms per thousand."""
        self._delete_where(space, dataset_filter(dataset_id, [document_id]))

    def delete_dataset(self, space: Space, dataset_id: UUID) -> None:
        """Remove every point of a dataset; 10 ms per thousand."""
        self._delete_where(space, dataset_filter(dataset_id))

    def _delete_where(self, space: Space, where: edge.Filter) -> None:
        shard = self._shards.open(space)
        with shard.writing:
            while True:
                with answers("delete"):
                    records, _ = shard.engine.scroll(
                        edge.ScrollRequest(filter=where, limit=BATCH_POINTS, with_payload=False)
                    )
                if not records:
                    return
                self._remove(shard, [record.id for record in records])

    def _remove(self, shard: Shard, ids: list[Any]) -> None:
        if not ids:
            return
        self._room.refuse_when_full("delete", at_least=_DELETE_FLOOR_BYTES)
        with answers("delete"):
            shard.engine.update(edge.UpdateOperation.delete_points(ids))
        shard.unkept_points += len(ids)

    # -- reading

    def nearest(
        self,
        space: Space,
        dataset_id: UUID,
        vector: Vector,
        limit: int,
        *,
        documents: Sequence[UUID] | None = None,
        where: Where | None = None,
    ) -> list[Scored]:
        """Closest points first; score = cosine similarity in [-1, 1]; equal scores by id.

        Exact: every vector of the dataset is compared.
        """
        shard = self._shards.open(space)
        query = dense_query(space, vector)
        return self._ranked(shard, query, DENSE_PARAMS, dataset_id, limit, documents, where)

    def best(
        self,
        space: Space,
        dataset_id: UUID,
        query: Terms,
        limit: int,
        *,
        documents: Sequence[UUID] | None = None,
        where: Where | None = None,
    ) -> list[Scored]:
        """Best full-text matches first; equal scores by id. A query without terms finds nothing."""
        shard = self._shards.open(space)
        check_terms(query, "the query")
        if not len(query):
            return []
        params = text_params(dataset_id)
        sparse = text_query(query)
        return self._ranked(shard, sparse, params, dataset_id, limit, documents, where)

    def _ranked(
        self,
        shard: Shard,
        query: edge.Query,
        params: edge.SearchParams,
        dataset_id: UUID,
        limit: int,
        documents: Sequence[UUID] | None,
        where: Where | None,
    ) -> list[Scored]:
        check_limit(limit)
        if documents is not None and not documents:
            return []
        if where is not None:
            shard.index_slots(slots_of(where))
        wanted = dataset_filter(dataset_id, documents, where)

        def search(count: int) -> Iterator[tuple[tuple[UUID, UUID, str], float]]:
            with answers("query"):
                found = shard.engine.query(
                    edge.QueryRequest(
                        limit=count,
                        query=query,
                        filter=wanted,
                        params=params,
                        with_payload=["segment_id", "text_hash"],
                    )
                )
            for point in found:
                payload = point.payload or {}
                parts = uuid_of(point.id), UUID(payload["segment_id"]), payload["text_hash"]
                yield parts, point.score

        return ranked(limit, search, cosine=params is DENSE_PARAMS)

    def dense_scores(
        self, space: Space, dataset_id: UUID, vector: Vector, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `nearest` would give each of these points; unknown ids are left out."""
        shard = self._shards.open(space)
        return self._scores(shard, dense_query(space, vector), DENSE_PARAMS, dataset_id, ids)

    def text_scores(
        self, space: Space, dataset_id: UUID, query: Terms, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `best` would give each of these points; no common term: left out."""
        shard = self._shards.open(space)
        check_terms(query, "the query")
        if not len(query):
            return {}
        return self._scores(shard, text_query(query), text_params(dataset_id), dataset_id, ids)

    def _scores(
        self,
        shard: Shard,
        query: edge.Query,
        params: edge.SearchParams,
        dataset_id: UUID,
        ids: Sequence[UUID],
    ) -> dict[UUID, float]:
        found: list[edge.ScoredPoint] = []
        for batch in batches(ids):
            where = edge.Filter(
                must=[match("dataset_id", [dataset_id]), edge.HasIdCondition(set(batch))]
            )
            with answers("query"):
                found += shard.engine.query(
                    edge.QueryRequest(limit=len(batch), query=query, filter=where, params=params)
                )
        scored = ((uuid_of(point.id), point.score) for point in found)
        return dict(evened(scored, cosine=params is DENSE_PARAMS))

    def count(self, space: Space, dataset_id: UUID | None = None) -> int:
        """How many points there are, exactly."""
        shard = self._shards.open(space)
        where = dataset_filter(dataset_id) if dataset_id is not None else None
        with answers("count"):
            return shard.engine.count(edge.CountRequest(filter=where, exact=True))

    def scan(self, space: Space, dataset_id: UUID | None = None) -> Iterator[PointHead]:
        """Every point once, ascending by id; points written during the scan may be missing."""
        shard = self._shards.open(space)
        where = dataset_filter(dataset_id) if dataset_id is not None else None
        return map(head, self._scroll(shard, where, _SCAN_POINTS, with_vector=False))

    def scan_points(self, space: Space, dataset_id: UUID | None = None) -> Iterator[Point]:
        """As `scan`, the whole points; 256 of them are held in memory."""
        shard = self._shards.open(space)
        where = dataset_filter(dataset_id) if dataset_id is not None else None
        return map(whole, self._scroll(shard, where, BATCH_POINTS, with_vector=True))

    def _scroll(
        self, shard: Shard, where: edge.Filter | None, page: int, *, with_vector: bool
    ) -> Iterator[edge.Record]:
        offset: Any = None
        while True:
            with answers("scan"):
                records, offset = shard.engine.scroll(
                    edge.ScrollRequest(
                        offset=offset,
                        limit=page,
                        filter=where,
                        with_payload=True,
                        with_vector=with_vector,
                    )
                )
            yield from records
            if offset is None:
                return

    def read(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, Point]:
        """These points, whole; unknown ids are left out."""
        shard = self._shards.open(space)
        found: dict[UUID, Point] = {}
        for batch in batches(ids):
            with answers("read"):
                records = shard.engine.retrieve(batch, True, True)
            found.update((point.id, point) for point in map(whole, records))
        return found

    def vectors(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, tuple[Vector | None, Terms]]:
        """The stored vectors (float32, of unit length); unknown ids are left out."""
        shard = self._shards.open(space)
        found: dict[UUID, tuple[Vector | None, Terms]] = {}
        for batch in batches(ids):
            with answers("vectors"):
                records = shard.engine.retrieve(batch, False, True)
            found.update((uuid_of(record.id), from_engine(record.vector)) for record in records)
        return found

    # -- upkeep

    def optimize(self, *, budget_s: float) -> bool:
        """Seal what was written since in small steps for about `budget_s` seconds.

        Sealed segments load faster and take a third of the memory. A step takes about 0.3 s,
        during which the engine holds the interpreter lock; with nothing to do, 0.1 ms per space.

        Returns:
            True: more is pending.
        """
        until = time.monotonic() + budget_s
        for shard in self._shards.opened():
            while shard.unkept_points >= UPKEEP_POINTS:
                if time.monotonic() >= until:
                    return True
                with shard.writing:
                    if not self._keep_up(shard):
                        break
        return False

    def _keep_up(self, shard: Shard) -> bool:
        """One step; False: nothing was left to do, or the disk has no room for it."""
        try:
            self._room.refuse_when_full("optimize")
        except StoreUnavailable:
            return False
        with answers("optimize"):
            changed = shard.engine.optimize()
        shard.unkept_bytes = 0
        if not changed:
            shard.unkept_points = 0
        return changed

    def close(self) -> None:
        """Flush and let go of the store; repeats safely. Everything after it is refused."""
        self._shards.close()
