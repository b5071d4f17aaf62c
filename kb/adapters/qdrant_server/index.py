"""The index itself: writing, asking, looking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from qdrant_client import QdrantClient
from qdrant_client.http import models

from kb.adapters.index_checks import check_limit, check_terms, dense_rows
from kb.adapters.index_facts import alike, slots_in
from kb.adapters.index_ranking import evened, ranked
from kb.adapters.qdrant_server.server import Server
from kb.adapters.qdrant_server.spaces import Spaces
from kb.adapters.qdrant_server.words import (
    BM25,
    DENSE,
    MAX_VERSION,
    dataset_filter,
    dense_query,
    facts_bytes,
    from_server,
    head,
    ids_filter,
    labelling,
    parcels,
    sparse,
    text_params,
    whole,
    written_until,
)
from kb.ports import Facts, Point, PointHead, Scored, Space, Terms, Where, slots_of
from kb.settings import Qdrant
from pipelines.types import Vector

_SCAN_POINTS = 1000
_SCAN_WHOLE_POINTS = 200  # 3 MB at 4,096 dimensions
_IDS_A_CALL = 1000
_LABELLED = 500  # documents that get equal facts in one operation
_OPERATION_BYTES = 250  # names and punctuation around what changes


class QdrantServerIndex:
    """SegmentIndex over a Qdrant server; many processes may use it at once.

    Every write waits until the server has it in its log and has applied it. Calls that fail for a
    transient reason are repeated (all of them may be), then `StoreUnavailable` is raised; so a
    call that writes several requests may have stored some of them, and is to be repeated whole.

    Dense vectors are brought to unit length before they are sent, and come back so, bit by bit.
    Datasets up to `full_scan_kb` of vectors per segment are searched exactly; larger ones through
    a graph of the dataset's own, which may miss a few of the nearest. Scores are always exact.

    Args:
        options: the server, how to reach it, and how new collections are laid out.
    """

    def __init__(self, options: Qdrant) -> None:
        self._options = options
        self._server = Server(options)
        self._spaces = Spaces(self._server, options)
        self._ordering = models.WriteOrdering(options.write_ordering)
        self._dense_params = models.SearchParams(
            exact=options.exact, hnsw_ef=None if options.exact else options.hnsw_ef
        )

    # -- spaces

    def ensure_space(self, space: Space) -> None:
        """Make the collection and its indexes where they are missing; repeats safely.

        Raises:
            ValueError: it exists with another `dim`, or the name or `dim` cannot be used.
            StoreUnavailable: the server does not answer or is too old, or the collection is not
                ours.
        """
        self._spaces.ensure(space)

    # -- writing

    def upsert(self, space: Space, points: Sequence[Point]) -> None:
        """Write points; a point whose id is known is replaced whole.

        Raises:
            ValueError: a vector of a wrong length, not finite or missing, terms out of order, an
                id twice, or a version above 2**53; then nothing is stored.
            StoreUnavailable: the server does not answer.
        """

        def write(collection: str) -> None:
            rows = dense_rows(space, points)
            for point in points:
                if point.version > MAX_VERSION:
                    raise ValueError(
                        f"point {point.id} has version {point.version}; use 0 to {MAX_VERSION}"
                    )
            self._spaces.index_slots(
                collection, slots_in({point.id: point.facts for point in points})
            )
            for parcel in parcels(
                points,
                rows,
                most_bytes=self._options.batch_bytes,
                most_points=self._options.batch_points,
                grpc=self._server.speaks_grpc,
            ):
                self._upsert(collection, parcel)

        self._spaces.ask(space, write)

    def _upsert(self, collection: str, parcel: list[models.PointStruct]) -> None:
        def send(client: QdrantClient) -> models.UpdateResult:
            return client.upsert(collection, parcel, wait=True, ordering=self._ordering)

        self._server.write("upsert", send)

    def label(self, space: Space, dataset_id: UUID, facts: Mapping[UUID, Facts]) -> None:
        """Give all points of these documents these facts in place of those that they have."""
        operations = [
            (labelling(dataset_id, documents, given), facts_bytes(given) + 40 * len(documents))
            for given, documents in alike(facts, most=_LABELLED)
        ]

        def write(collection: str) -> None:
            self._spaces.index_slots(collection, slots_in(facts))
            for part in _within(operations, self._options.batch_bytes):
                self._label(collection, part)

        self._spaces.ask(space, write)

    def _label(self, collection: str, operations: list[models.SetPayloadOperation]) -> None:
        def send(client: QdrantClient) -> models.UpdateResult:
            results = client.batch_update_points(
                collection, operations, wait=True, ordering=self._ordering
            )
            late = [r for r in results if r.status is not models.UpdateStatus.COMPLETED]
            return (late or results)[0]

        self._server.write("label", send)

    def flush(self, space: Space) -> None:
        """Nothing to do: a write has returned only when the server had it in its log.

        The server syncs its log and segments on its own (every 5 s unless told otherwise) and has
        no call to hasten it. What a loss of power on its machine may cost is given by its
        replicas, or made good by `kb doctor --repair`.
        """
        self._spaces.ask(space, lambda _: None)

    def delete(self, space: Space, ids: Sequence[UUID], *, up_to_version: int) -> None:
        """Remove those of the points that were written by version `up_to_version` or before.

        One delete by filter: the server looks at the version when it removes the point, not
        before, so a point that is written anew meanwhile stays.
        """

        def remove(collection: str) -> None:
            for batch in _batches(ids):
                self._delete_where(collection, written_until(batch, up_to_version))

        self._spaces.ask(space, remove)

    def delete_document(self, space: Space, dataset_id: UUID, document_id: UUID) -> None:
        """Remove every point of a document."""
        where = dataset_filter(dataset_id, [document_id])
        self._spaces.ask(space, lambda collection: self._delete_where(collection, where))

    def delete_dataset(self, space: Space, dataset_id: UUID) -> None:
        """Remove every point of a dataset."""
        where = dataset_filter(dataset_id)
        self._spaces.ask(space, lambda collection: self._delete_where(collection, where))

    def _delete_where(self, collection: str, where: models.Filter) -> None:
        selector = models.FilterSelector(filter=where)

        def send(client: QdrantClient) -> models.UpdateResult:
            return client.delete(collection, selector, wait=True, ordering=self._ordering)

        self._server.write("delete", send)

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
        """Closest points first; score = cosine similarity in [-1, 1]; equal scores by id."""
        query = dense_query(space, vector)
        return self._ranked(space, query, self._dense_params, dataset_id, limit, documents, where)

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
        """Best full-text matches first; equal scores by id. A query without terms finds nothing.

        With more than one shard the statistics are those of the dataset's points in each shard.
        """
        check_terms(query, "the query")
        if not len(query):
            return []
        params = text_params(dataset_id)
        words = sparse(query)
        return self._ranked(space, words, params, dataset_id, limit, documents, where)

    def _ranked(
        self,
        space: Space,
        query: list[float] | models.SparseVector,
        params: models.SearchParams,
        dataset_id: UUID,
        limit: int,
        documents: Sequence[UUID] | None,
        where: Where | None,
    ) -> list[Scored]:
        check_limit(limit)
        if documents is not None and not documents:
            return []
        if where is not None and (slots := slots_of(where)):
            self._spaces.ask(space, lambda name: self._spaces.index_slots(name, slots))
        wanted = dataset_filter(dataset_id, documents, where)

        payload = ["segment_id", "text_hash"]

        def search(count: int) -> Iterator[tuple[tuple[UUID, UUID, str], float]]:
            for point in self._query(space, query, params, wanted, count, payload=payload):
                held = point.payload or {}
                parts = UUID(str(point.id)), UUID(held["segment_id"]), held["text_hash"]
                yield parts, point.score

        return ranked(limit, search, cosine=isinstance(query, list))

    def dense_scores(
        self, space: Space, dataset_id: UUID, vector: Vector, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `nearest` would give each of these points; unknown ids are left out."""
        exact = models.SearchParams(exact=True)
        return self._scores(space, dense_query(space, vector), exact, dataset_id, ids)

    def text_scores(
        self, space: Space, dataset_id: UUID, query: Terms, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `best` would give each of these points; no common term: left out."""
        check_terms(query, "the query")
        if not len(query):
            return {}
        return self._scores(space, sparse(query), text_params(dataset_id), dataset_id, ids)

    def _scores(
        self,
        space: Space,
        query: list[float] | models.SparseVector,
        params: models.SearchParams,
        dataset_id: UUID,
        ids: Sequence[UUID],
    ) -> dict[UUID, float]:
        found: list[models.ScoredPoint] = []
        for batch in _batches(ids):
            where = ids_filter(dataset_id, batch)
            found += self._query(space, query, params, where, len(batch), payload=False)
        scored = ((UUID(str(point.id)), point.score) for point in found)
        return dict(evened(scored, cosine=isinstance(query, list)))

    def _query(
        self,
        space: Space,
        query: list[float] | models.SparseVector,
        params: models.SearchParams,
        where: models.Filter,
        limit: int,
        *,
        payload: bool | list[str],
    ) -> list[models.ScoredPoint]:
        def ask(collection: str) -> list[models.ScoredPoint]:
            def send(client: QdrantClient) -> models.QueryResponse:
                return client.query_points(
                    collection,
                    query=query,
                    using=DENSE if isinstance(query, list) else BM25,
                    query_filter=where,
                    search_params=params,
                    limit=limit,
                    with_payload=payload,
                )

            return self._server.call("query", send).points

        return self._spaces.ask(space, ask)

    def count(self, space: Space, dataset_id: UUID | None = None) -> int:
        """How many points there are, exactly."""
        where = dataset_filter(dataset_id) if dataset_id is not None else None

        def ask(collection: str) -> int:
            def send(client: QdrantClient) -> models.CountResult:
                return client.count(collection, count_filter=where, exact=True)

            return self._server.call("count", send).count

        return self._spaces.ask(space, ask)

    def scan(self, space: Space, dataset_id: UUID | None = None) -> Iterator[PointHead]:
        """Every point once, ascending by id; points written during the scan may be missing."""
        return map(head, self._scroll(space, dataset_id, _SCAN_POINTS, with_vectors=False))

    def scan_points(self, space: Space, dataset_id: UUID | None = None) -> Iterator[Point]:
        """As `scan`, the whole points; 200 of them are held in memory."""
        return map(whole, self._scroll(space, dataset_id, _SCAN_WHOLE_POINTS, with_vectors=True))

    def _scroll(
        self, space: Space, dataset_id: UUID | None, page: int, *, with_vectors: bool
    ) -> Iterator[models.Record]:
        where = dataset_filter(dataset_id) if dataset_id is not None else None
        offset: Any = None

        def ask(collection: str) -> tuple[list[models.Record], Any]:
            def send(client: QdrantClient) -> tuple[list[models.Record], Any]:
                return client.scroll(
                    collection,
                    scroll_filter=where,
                    offset=offset,
                    limit=page,
                    with_payload=True,
                    with_vectors=with_vectors,
                )

            return self._server.call("scan", send)

        while True:
            records, offset = self._spaces.ask(space, ask)
            yield from records
            if offset is None:
                return

    def read(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, Point]:
        """These points, whole; unknown ids are left out."""

        def ask(collection: str) -> dict[UUID, Point]:
            records = (
                record
                for batch in _batches(ids)
                for record in self._retrieve("read", collection, batch, with_payload=True)
            )
            return {point.id: point for point in map(whole, records)}

        return self._spaces.ask(space, ask)

    def vectors(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, tuple[Vector | None, Terms]]:
        """The stored vectors (float32, of unit length); unknown ids are left out."""

        def ask(collection: str) -> dict[UUID, tuple[Vector | None, Terms]]:
            found: dict[UUID, tuple[Vector | None, Terms]] = {}
            for batch in _batches(ids):
                for record in self._retrieve("vectors", collection, batch, with_payload=False):
                    found[UUID(str(record.id))] = from_server(record.vector)
            return found

        return self._spaces.ask(space, ask)

    def _retrieve(
        self, operation: str, collection: str, ids: Sequence[UUID], *, with_payload: bool
    ) -> list[models.Record]:
        def send(client: QdrantClient) -> list[models.Record]:
            return client.retrieve(
                collection, [str(id) for id in ids], with_payload=with_payload, with_vectors=True
            )

        return self._server.call(operation, send)

    # -- upkeep

    def optimize(self, *, budget_s: float) -> bool:
        """Nothing to do here: the server seals and merges its segments by itself."""
        return False

    def close(self) -> None:
        """Let go of the connection; repeats safely. Everything after it is refused."""
        self._server.close()


def _within(
    operations: Sequence[tuple[models.SetPayloadOperation, int]], most_bytes: int
) -> Iterator[list[models.SetPayloadOperation]]:
    """The operations in requests of about so many bytes, one operation at least."""
    part: list[models.SetPayloadOperation] = []
    part_bytes = 0
    for operation, size in operations:
        size += _OPERATION_BYTES
        if part and part_bytes + size > most_bytes:
            yield part
            part, part_bytes = [], 0
        part.append(operation)
        part_bytes += size
    if part:
        yield part


def _batches(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for start in range(0, len(ids), _IDS_A_CALL):
        yield ids[start : start + _IDS_A_CALL]
