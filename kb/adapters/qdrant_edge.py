"""SegmentIndex in this process: Qdrant Edge, one shard per embedding space.

On disk: `<directory>/<space name>/space.json` (name, dim, layout version) and, beside it, the
engine's `shard/`. `<directory>/lock` is held while any shard is open: one process at a time.

Every engine call holds the interpreter lock, so everything here goes in small pieces: 256 points
a write (5-15 ms), upkeep by about 10 MB of new points (0.3 s).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge
from filelock import FileLock, Timeout

from kb.adapters.index_checks import check_space, check_terms, dense_rows, unit_rows
from kb.errors import StoreUnavailable
from kb.ports import Point, PointHead, Scored, Space, Terms
from pipelines.types import Vector

DENSE, BM25 = "dense", "bm25"
LAYOUT = 1
"""Version of what is stored and how; another one is rebuilt, never guessed at."""

_STORE = "qdrant edge"
_BATCH_POINTS = 256
_SCAN_POINTS = 512
_SPARE_HITS = 16  # fetched beyond the limit, to see whether a tie crosses it
_UPKEEP_POINTS = 500  # asking costs 0.1 ms: the engine finds nothing to do below segment_kb
_DELETE_FLOOR_BYTES = 64 * 2**20  # deletes free space, but the log that they go through grows first


@dataclass(slots=True)
class _Shard:
    """An open space. Queries go straight to the engine; writers take turns."""

    space: Space
    engine: edge.EdgeShard
    writing: threading.RLock = field(default_factory=threading.RLock)
    unkept_points: int = 0
    unkept_bytes: int = 0


class QdrantEdgeIndex:
    """SegmentIndex over Qdrant Edge: exact dense search, BM25 as sparse vectors, no server.

    Dense vectors are brought to unit length before they are stored (in float64, rounded to
    float32; unit vectors are left as they are); `vectors` gives them back so, bit by bit. A zero
    vector stays zero and scores 0.
    Ties are exact: equal texts score the same bits whichever segment holds them.

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
        with _answers("open"):
            directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._max_search_threads = max_search_threads
        self._segment_kb = segment_kb
        self._min_free_bytes = min_free_bytes
        self._min_free_share = min_free_share
        self._shards: dict[str, _Shard] = {}
        self._opening = threading.Lock()
        self._held = FileLock(directory / "lock", thread_local=False)
        self._closed = False

    # -- spaces

    def ensure_space(self, space: Space) -> None:
        """Make the shard if it is not there; repeats safely.

        Raises:
            ValueError: it exists with another `dim`, or the name or `dim` cannot be used.
            StoreUnavailable: another process has the directory, or the disk is almost full.
        """
        check_space(space)
        with self._opening:
            self._hold()
            if not (self._directory / space.name).exists():
                self._refuse_when_full("ensure_space")
                self._create(space)
        self._open(space)

    def _create(self, space: Space) -> None:
        """Build aside and rename: a shard is there whole or not at all."""
        building = self._directory / f"{space.name}.new"
        with _answers("ensure_space"):
            shutil.rmtree(building, ignore_errors=True)
            (building / "shard").mkdir(parents=True)
            engine = edge.EdgeShard.create(str(building / "shard"), self._config(space))
            for name, index in (
                ("dataset_id", edge.KeywordIndexParams(is_tenant=True)),
                ("document_id", edge.KeywordIndexParams()),
            ):
                # On the empty shard: on a full one it takes seconds.
                engine.update(edge.UpdateOperation.create_field_index(name, index))
            engine.flush()
            engine.close()
            described = {"layout": LAYOUT, "name": space.name, "dim": space.dim}
            (building / "space.json").write_text(json.dumps(described))
            _sync(building / "space.json")
            _sync(building)
            building.rename(self._directory / space.name)
            _sync(self._directory)

    def _open(self, space: Space) -> _Shard:
        if self._closed:
            raise StoreUnavailable(_STORE, "open", "the index is closed")
        shard = self._shards.get(space.name)
        if shard is None:
            with self._opening:
                self._hold()
                shard = self._shards.get(space.name) or self._load(space)
                self._shards[space.name] = shard
        if shard.space != space:
            raise ValueError(
                f"space {space.name!r} holds vectors of dim {shard.space.dim}, not {space.dim}; "
                "another model needs a space of its own"
            )
        return shard

    def _load(self, space: Space) -> _Shard:
        check_space(space)
        home = self._directory / space.name
        if not home.exists():
            raise ValueError(f"no space {space.name!r} in the index; call ensure_space first")
        found = _read_space(home / "space.json")
        with _answers("open"):
            # Left by a kill during upkeep; the engine would keep it for ever.
            shutil.rmtree(home / "shard" / "temp_segments", ignore_errors=True)
            engine = edge.EdgeShard.load(str(home / "shard"), self._config(found))
        # How much of it is unkept is not known: the first upkeep looks.
        return _Shard(found, engine, unkept_points=_UPKEEP_POINTS)

    def _hold(self) -> None:
        """Be the only process on the directory. The engine's own lock is taken too late for us:
        clearing up before the load would disturb the other process.
        """
        if self._closed:
            raise StoreUnavailable(_STORE, "open", "the index is closed")
        if self._held.is_locked:
            return
        try:
            self._held.acquire(timeout=0)
        except Timeout as exc:
            reason = f"another process uses {self._directory}; stop it, or ask it over its API"
            raise StoreUnavailable(_STORE, "open", reason) from exc
        except OSError as exc:
            raise StoreUnavailable(_STORE, "open", str(exc)) from exc

    def _config(self, space: Space) -> edge.EdgeConfig:
        dense = None
        if space.dim is not None:
            dense = {DENSE: edge.EdgeVectorParams(size=space.dim, distance=edge.Distance.Cosine)}
        return edge.EdgeConfig(
            vectors=dense,
            sparse_vectors={BM25: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
            # No graph: an exact scan of 50k vectors takes 3 ms, and filters cost it no recall.
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10),
            optimizers=edge.EdgeOptimizersConfig(
                default_segment_number=100,
                max_segment_size=self._segment_kb,
                indexing_threshold=self._segment_kb,
            ),
            max_search_threads=self._max_search_threads,
            wal_enabled=True,
        )

    # -- writing

    def upsert(self, space: Space, points: Sequence[Point]) -> None:
        """Write points; a point whose id is known is replaced whole.

        Raises:
            ValueError: a vector of a wrong length, not finite or missing, terms out of order, or
                an id twice; then nothing is stored.
            StoreUnavailable: the disk is almost full, or the engine failed.
        """
        shard = self._open(space)
        dense = dense_rows(space, points)
        for start in range(0, len(points), _BATCH_POINTS):
            batch = points[start : start + _BATCH_POINTS]
            rows = dense[start : start + _BATCH_POINTS].tolist() if dense is not None else None
            operation = edge.UpdateOperation.upsert_points(
                [_to_engine(point, rows[i] if rows else None) for i, point in enumerate(batch)]
            )
            with shard.writing:
                self._refuse_when_full("upsert")
                with _answers("upsert"):
                    shard.engine.update(operation)
                shard.unkept_points += len(batch)
                shard.unkept_bytes += sum(
                    4 * (space.dim or 0) + 8 * len(point.terms) for point in batch
                )
                if shard.unkept_bytes > 2_000 * self._segment_kb:
                    self._keep_up(shard)

    def flush(self, space: Space) -> None:
        """Make all that was written survive a loss of power; 15-90 ms."""
        shard = self._open(space)
        with shard.writing, _answers("flush"):
            shard.engine.flush()

    def delete(self, space: Space, ids: Sequence[UUID], *, up_to_version: int) -> None:
        """Remove those of the points that were written by version `up_to_version` or before."""
        shard = self._open(space)
        for batch in _batches(ids):
            with shard.writing:
                with _answers("delete"):
                    records = shard.engine.retrieve(batch, ["version"], False)
                self._remove(
                    shard,
                    [r.id for r in records if (r.payload or {})["version"] <= up_to_version],
                )

    def delete_document(self, space: Space, dataset_id: UUID, document_id: UUID) -> None:
        """Remove every point of a document; 10 ms per thousand."""
        self._delete_where(space, _filter(dataset_id, [document_id]))

    def delete_dataset(self, space: Space, dataset_id: UUID) -> None:
        """Remove every point of a dataset; 10 ms per thousand."""
        self._delete_where(space, _filter(dataset_id))

    def _delete_where(self, space: Space, where: edge.Filter) -> None:
        shard = self._open(space)
        with shard.writing:
            while True:
                with _answers("delete"):
                    records, _ = shard.engine.scroll(
                        edge.ScrollRequest(filter=where, limit=_BATCH_POINTS, with_payload=False)
                    )
                if not records:
                    return
                self._remove(shard, [record.id for record in records])

    def _remove(self, shard: _Shard, ids: list[Any]) -> None:
        if not ids:
            return
        self._refuse_when_full("delete", at_least=_DELETE_FLOOR_BYTES)
        with _answers("delete"):
            shard.engine.update(edge.UpdateOperation.delete_points(ids))
        shard.unkept_points += len(ids)

    def _refuse_when_full(self, operation: str, *, at_least: int | None = None) -> None:
        with _answers(operation):
            disk = shutil.disk_usage(self._directory)
        needed = at_least
        if needed is None:
            needed = max(self._min_free_bytes, int(self._min_free_share * disk.total))
        if disk.free < needed:
            raise StoreUnavailable(
                _STORE,
                operation,
                f"disk almost full: {disk.free // 2**20} MB free at {self._directory}, "
                f"{needed // 2**20} MB needed; free some space",
            )

    # -- reading

    def nearest(
        self,
        space: Space,
        dataset_id: UUID,
        vector: Vector,
        limit: int,
        *,
        documents: Sequence[UUID] | None = None,
    ) -> list[Scored]:
        """Closest points first; score = cosine similarity in [-1, 1]; equal scores by id.

        Exact: every vector of the dataset is compared.
        """
        shard = self._open(space)
        query = _dense_query(space, vector)
        return self._ranked(shard, query, _DENSE_PARAMS, dataset_id, limit, documents)

    def best(
        self,
        space: Space,
        dataset_id: UUID,
        query: Terms,
        limit: int,
        *,
        documents: Sequence[UUID] | None = None,
    ) -> list[Scored]:
        """Best full-text matches first; equal scores by id. A query without terms finds nothing."""
        shard = self._open(space)
        check_terms(query, "the query")
        if not len(query):
            return []
        params = _text_params(dataset_id)
        return self._ranked(shard, _text_query(query), params, dataset_id, limit, documents)

    def _ranked(
        self,
        shard: _Shard,
        query: edge.Query,
        params: edge.SearchParams,
        dataset_id: UUID,
        limit: int,
        documents: Sequence[UUID] | None,
    ) -> list[Scored]:
        """The engine's order among equal scores is its own: fetch until no tie crosses the cut."""
        if limit <= 0:
            raise ValueError(f"limit is {limit}; give a number above 0")
        if documents is not None and not documents:
            return []
        where = _filter(dataset_id, documents)
        fetch = limit + _SPARE_HITS
        while True:
            with _answers("query"):
                found = shard.engine.query(
                    edge.QueryRequest(
                        limit=fetch,
                        query=query,
                        filter=where,
                        params=params,
                        with_payload=["segment_id"],
                    )
                )
            hits = [
                Scored(_uuid(p.id), UUID((p.payload or {})["segment_id"]), _score(params, p.score))
                for p in found
            ]
            hits.sort(key=lambda hit: (-hit.score, hit.id))
            if len(found) < fetch or hits[limit - 1].score > hits[-1].score:
                return hits[:limit]
            fetch *= 2

    def dense_scores(
        self, space: Space, dataset_id: UUID, vector: Vector, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `nearest` would give each of these points; unknown ids are left out."""
        shard = self._open(space)
        return self._scores(shard, _dense_query(space, vector), _DENSE_PARAMS, dataset_id, ids)

    def text_scores(
        self, space: Space, dataset_id: UUID, query: Terms, ids: Sequence[UUID]
    ) -> dict[UUID, float]:
        """The score that `best` would give each of these points; no common term: left out."""
        shard = self._open(space)
        check_terms(query, "the query")
        if not len(query):
            return {}
        return self._scores(shard, _text_query(query), _text_params(dataset_id), dataset_id, ids)

    def _scores(
        self,
        shard: _Shard,
        query: edge.Query,
        params: edge.SearchParams,
        dataset_id: UUID,
        ids: Sequence[UUID],
    ) -> dict[UUID, float]:
        scores: dict[UUID, float] = {}
        for batch in _batches(ids):
            where = edge.Filter(
                must=[_match("dataset_id", [dataset_id]), edge.HasIdCondition(set(batch))]
            )
            with _answers("query"):
                found = shard.engine.query(
                    edge.QueryRequest(limit=len(batch), query=query, filter=where, params=params)
                )
            scores.update((_uuid(point.id), _score(params, point.score)) for point in found)
        return scores

    def count(self, space: Space, dataset_id: UUID | None = None) -> int:
        """How many points there are, exactly."""
        shard = self._open(space)
        where = _filter(dataset_id) if dataset_id is not None else None
        with _answers("count"):
            return shard.engine.count(edge.CountRequest(filter=where, exact=True))

    def scan(self, space: Space, dataset_id: UUID | None = None) -> Iterator[PointHead]:
        """Every point once, ascending by id; points written during the scan may be missing."""
        shard = self._open(space)
        return self._scan(shard, _filter(dataset_id) if dataset_id is not None else None)

    def _scan(self, shard: _Shard, where: edge.Filter | None) -> Iterator[PointHead]:
        offset: Any = None
        while True:
            with _answers("scan"):
                records, offset = shard.engine.scroll(
                    edge.ScrollRequest(
                        offset=offset, limit=_SCAN_POINTS, filter=where, with_payload=True
                    )
                )
            yield from map(_head, records)
            if offset is None:
                return

    def vectors(self, space: Space, ids: Sequence[UUID]) -> dict[UUID, tuple[Vector | None, Terms]]:
        """The stored vectors (float32, of unit length); unknown ids are left out."""
        shard = self._open(space)
        found: dict[UUID, tuple[Vector | None, Terms]] = {}
        for batch in _batches(ids):
            with _answers("vectors"):
                records = shard.engine.retrieve(batch, False, True)
            found.update((_uuid(record.id), _from_engine(record.vector)) for record in records)
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
        for shard in list(self._shards.values()):
            while shard.unkept_points >= _UPKEEP_POINTS:
                if time.monotonic() >= until:
                    return True
                with shard.writing:
                    if not self._keep_up(shard):
                        break
        return False

    def _keep_up(self, shard: _Shard) -> bool:
        """One step; False: nothing was left to do, or the disk has no room for it."""
        try:
            self._refuse_when_full("optimize")
        except StoreUnavailable:
            return False
        with _answers("optimize"):
            changed = shard.engine.optimize()
        shard.unkept_bytes = 0
        if not changed:
            shard.unkept_points = 0
        return changed

    def close(self) -> None:
        """Flush and let go of the store; repeats safely. Everything after it is refused."""
        with self._opening:
            self._closed = True
            try:
                while self._shards:
                    _, shard = self._shards.popitem()
                    with shard.writing, _answers("close"):
                        shard.engine.flush()
                        shard.engine.close()
            finally:
                self._held.release()


# -- the engine's words


@contextmanager
def _answers(operation: str) -> Iterator[None]:
    """The engine raises plain `Exception` with a text for everything."""
    try:
        yield
    except Exception as exc:
        raise StoreUnavailable(_STORE, operation, str(exc)) from exc


_DENSE_PARAMS = edge.SearchParams(exact=True)


def _text_params(dataset_id: UUID) -> edge.SearchParams:
    """Without a corpus the statistics would be those of all datasets together."""
    return edge.SearchParams(idf=edge.IdfParams(corpus=_filter(dataset_id)))


def _filter(dataset_id: UUID, documents: Sequence[UUID] | None = None) -> edge.Filter:
    must: list[Any] = [_match("dataset_id", [dataset_id])]
    if documents is not None:
        must.append(_match("document_id", documents))
    return edge.Filter(must=must)


def _match(name: str, values: Sequence[UUID]) -> edge.FieldCondition:
    if len(values) == 1:
        return edge.FieldCondition(name, match=edge.MatchValue(str(values[0])))
    return edge.FieldCondition(name, match=edge.MatchAny([str(value) for value in values]))


def _dense_query(space: Space, vector: Vector) -> edge.Query:
    if space.dim is None:
        raise ValueError(f"space {space.name!r} holds no dense vectors")
    row = unit_rows(space, [vector], ["the query"])[0]
    if not row.any():
        raise ValueError("the query vector is zero; it has no direction to compare")
    return edge.Query.Nearest(row.tolist(), using=DENSE)


def _text_query(query: Terms) -> edge.Query:
    return edge.Query.Nearest(_sparse(query), using=BM25)


def _sparse(terms: Terms) -> edge.SparseVector:
    return edge.SparseVector(terms.ids.tolist(), terms.weights.tolist())


def _to_engine(point: Point, dense: list[float] | None) -> edge.Point:
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
    }
    return edge.Point(point.id, vectors, payload)


def _from_engine(vector: Any) -> tuple[Vector | None, Terms]:
    dense = np.array(vector[DENSE], dtype=np.float32) if DENSE in vector else None
    ids = np.array(vector[BM25].indices, dtype=np.uint32)
    weights = np.array(vector[BM25].values, dtype=np.float32)
    order = np.argsort(ids)
    return dense, Terms(ids[order], weights[order])


def _head(record: edge.Record) -> PointHead:
    payload = record.payload or {}
    return PointHead(
        id=_uuid(record.id),
        dataset_id=UUID(payload["dataset_id"]),
        document_id=UUID(payload["document_id"]),
        segment_id=UUID(payload["segment_id"]),
        version=payload["version"],
        text_hash=payload["text_hash"],
    )


def _uuid(point_id: edge.PointId) -> UUID:
    return point_id if isinstance(point_id, UUID) else UUID(str(point_id))


def _score(params: edge.SearchParams, score: float) -> float:
    """Rounding can carry a cosine past 1."""
    return min(1.0, max(-1.0, score)) if params is _DENSE_PARAMS else score


def _batches(ids: Sequence[UUID]) -> Iterator[list[Any]]:
    for start in range(0, len(ids), _BATCH_POINTS):
        yield list(ids[start : start + _BATCH_POINTS])


# -- files


def _read_space(path: Path) -> Space:
    try:
        described = json.loads(path.read_text())
        layout, space = described["layout"], Space(described["name"], described["dim"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        reason = f"{path} cannot be read ({exc}); remove its folder and rebuild the index"
        raise StoreUnavailable(_STORE, "open", reason) from exc
    if layout != LAYOUT:
        reason = f"{path} has layout {layout}, this version reads {LAYOUT}; rebuild the index"
        raise StoreUnavailable(_STORE, "open", reason)
    return space


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
