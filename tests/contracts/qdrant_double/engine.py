"""The calls themselves, in the client's models, on one shard per collection."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client.http import models

from tests.contracts.qdrant_double.translate import (
    Refused,
    filter_of,
    ids_of,
    index_of,
    only,
    params_of,
    payload_of,
    point_id,
    point_of,
    query_of,
    vectors_from,
)

_SEGMENT_KB = 40  # small, so that a few hundred points lie in several segments
_UPKEEP_POINTS = 500


class Described(BaseModel):
    """What is kept of a collection beside its shard."""

    created: models.CreateCollection
    indexes: dict[
        str, models.KeywordIndexParams | models.IntegerIndexParams | models.FloatIndexParams
    ] = {}


class Collection:
    """One collection; every method is thread-safe."""

    def __init__(self, home: Path, created: models.CreateCollection | None = None) -> None:
        self._home = home
        self._lock = threading.RLock()
        self._unkept = 0
        if created is not None:
            shutil.rmtree(home, ignore_errors=True)
            (home / "shard").mkdir(parents=True)
            self._described = Described(created=created)
            self._shard = edge.EdgeShard.create(str(home / "shard"), self._config())
            self._describe()
        else:
            self._described = Described.model_validate_json((home / "collection.json").read_text())
            shutil.rmtree(home / "shard" / "temp_segments", ignore_errors=True)
            self._shard = edge.EdgeShard.load(str(home / "shard"), self._config())
        dense = self._described.created.vectors or {}
        assert isinstance(dense, dict)
        self._vectors: dict[str, int | None] = {name: dense[name].size for name in dense}
        self._vectors |= dict.fromkeys(self._described.created.sparse_vectors or {})

    def close(self) -> None:
        with self._lock:
            self._shard.flush()
            self._shard.close()

    def info(self) -> models.CollectionInfo:
        created, shard = self._described.created, self._shard.info()
        hnsw = created.hnsw_config or models.HnswConfigDiff()
        return models.CollectionInfo(
            status=models.CollectionStatus.GREEN,
            optimizer_status=models.OptimizersStatusOneOf.OK,
            indexed_vectors_count=shard.indexed_vectors_count,
            points_count=shard.points_count,
            segments_count=shard.segments_count,
            config=models.CollectionConfig(
                params=models.CollectionParams(
                    vectors=created.vectors,
                    sparse_vectors=created.sparse_vectors,
                    shard_number=created.shard_number or 1,
                    replication_factor=created.replication_factor or 1,
                    write_consistency_factor=created.write_consistency_factor or 1,
                    on_disk_payload=True,
                ),
                hnsw_config=models.HnswConfig(
                    m=16 if hnsw.m is None else hnsw.m,
                    ef_construct=100,
                    full_scan_threshold=hnsw.full_scan_threshold or 10_000,
                    payload_m=hnsw.payload_m,
                ),
                optimizer_config=models.OptimizersConfig(
                    deleted_threshold=0.2,
                    vacuum_min_vector_number=1000,
                    default_segment_number=0,
                    flush_interval_sec=5,
                ),
                wal_config=models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0),
                metadata=created.metadata,
            ),
            payload_schema={
                name: models.PayloadIndexInfo(
                    data_type=models.PayloadSchemaType(params.type.value), params=params, points=0
                )
                for name, params in self._described.indexes.items()
            },
        )

    # -- writes

    def create_index(self, request: models.CreateFieldIndex) -> None:
        with self._lock:
            operation = edge.UpdateOperation.create_field_index(
                request.field_name, index_of(request.field_schema)
            )
            self._shard.update(operation)
            self._described.indexes[request.field_name] = request.field_schema
            self._describe()

    def upsert(self, request: models.PointsList) -> None:
        only(request, "points")
        points = [point_of(point, self._vectors) for point in request.points]
        if not points:
            raise Refused(400, "Wrong input: Empty update request")
        with self._lock:
            self._shard.update(edge.UpdateOperation.upsert_points(points))
            self._unkept += len(points)
            if self._unkept >= _UPKEEP_POINTS:
                self._shard.optimize()
                self._unkept = 0

    def delete(self, request: Any) -> None:
        if not isinstance(request, models.FilterSelector):
            raise Refused(400, f"the double does not serve {type(request).__name__}")
        only(request, "filter")
        where = filter_of(request.filter, self._described.indexes)
        with self._lock:
            self._shard.update(edge.UpdateOperation.delete_points_by_filter(where))

    def batch(self, request: models.UpdateOperations) -> None:
        operations = []
        for given in request.operations:
            if not isinstance(given, models.SetPayloadOperation):
                raise Refused(400, f"the double does not serve {type(given).__name__}")
            only(given.set_payload, "payload", "filter")
            where = filter_of(given.set_payload.filter, self._described.indexes)
            if where is None:
                raise Refused(400, "the double sets payload by filter only")
            operations.append(
                edge.UpdateOperation.set_payload_by_filter(where, given.set_payload.payload)
            )
        with self._lock:
            for operation in operations:
                self._shard.update(operation)

    # -- reads

    def query(self, request: models.QueryRequest) -> models.QueryResponse:
        only(request, "query", "using", "filter", "params", "limit", "with_payload", "with_vector")
        if request.using not in self._vectors:
            raise Refused(400, f"Wrong input: Not existing vector name error: {request.using}")
        if request.with_vector:
            raise Refused(400, "the double does not serve QueryRequest.with_vector")
        if request.limit is None or request.limit < 1:
            raise Refused(422, f"Validation error: limit: {request.limit} invalid, must be >= 1")
        found = self._shard.query(
            edge.QueryRequest(
                limit=request.limit,
                query=query_of(request.query, request.using, self._vectors[request.using]),
                filter=filter_of(request.filter, self._described.indexes),
                params=params_of(request.params, self._described.indexes),
                with_payload=payload_of(request.with_payload),
            )
        )
        points = [
            models.ScoredPoint(
                id=str(point.id), version=point.version, score=point.score, payload=point.payload
            )
            for point in found
        ]
        return models.QueryResponse(points=points)

    def scroll(self, request: models.ScrollRequest) -> models.ScrollResult:
        only(request, "offset", "limit", "filter", "with_payload", "with_vector")
        with_vector = request.with_vector is True
        records, offset = self._shard.scroll(
            edge.ScrollRequest(
                offset=None if request.offset is None else point_id(request.offset),
                limit=request.limit or 10,
                filter=filter_of(request.filter, self._described.indexes),
                with_payload=payload_of(request.with_payload),
                with_vector=with_vector,
            )
        )
        return models.ScrollResult(
            points=[_record(record, with_vector=with_vector) for record in records],
            next_page_offset=None if offset is None else str(offset),
        )

    def count(self, request: models.CountRequest) -> models.CountResult:
        only(request, "filter", "exact")
        where = filter_of(request.filter, self._described.indexes)
        # Not said: the server's default is true.
        exact = request.exact is not False
        counted = self._shard.count(edge.CountRequest(filter=where, exact=exact))
        return models.CountResult(count=counted)

    def retrieve(self, request: models.PointRequest) -> list[models.Record]:
        only(request, "ids", "with_payload", "with_vector")
        with_vector = request.with_vector is True
        records = self._shard.retrieve(
            ids_of(request.ids), payload_of(request.with_payload), with_vector
        )
        return [_record(record, with_vector=with_vector) for record in records]

    def _describe(self) -> None:
        aside = self._home / "collection.new"
        aside.write_text(self._described.model_dump_json(exclude_none=True))
        aside.rename(self._home / "collection.json")

    def _config(self) -> edge.EdgeConfig:
        created = self._described.created
        dense = created.vectors or {}
        assert isinstance(dense, dict)
        return edge.EdgeConfig(
            vectors={
                name: edge.EdgeVectorParams(size=params.size, distance=edge.Distance.Cosine)
                for name, params in dense.items()
            }
            or None,
            sparse_vectors={
                name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)
                for name in created.sparse_vectors or {}
            },
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10),
            optimizers=edge.EdgeOptimizersConfig(
                default_segment_number=100,
                max_segment_size=_SEGMENT_KB,
                indexing_threshold=_SEGMENT_KB,
            ),
            max_search_threads=1,
            wal_enabled=True,
        )


def _record(record: edge.Record, *, with_vector: bool) -> models.Record:
    return models.Record(
        id=str(record.id),
        payload=record.payload,
        vector=vectors_from(record.vector) if with_vector else None,
    )


class Engine:
    """All collections of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._open: dict[str, Collection] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for home in directory.iterdir():
            if (home / "collection.json").exists():
                self._open[home.name] = Collection(home)

    def names(self) -> list[str]:
        return sorted(self._open)

    def get(self, name: str) -> Collection:
        collection = self._open.get(name)
        if collection is None:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return collection

    def create(self, name: str, request: models.CreateCollection) -> None:
        only(
            request,
            "vectors",
            "sparse_vectors",
            "shard_number",
            "replication_factor",
            "write_consistency_factor",
            "hnsw_config",
            "metadata",
        )
        self._check(request)
        with self._lock:
            if name in self._open:
                raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
            self._open[name] = Collection(self._directory / name, request)

    def delete(self, name: str) -> bool:
        with self._lock:
            collection = self._open.pop(name, None)
            if collection is None:
                return False
            collection.close()
            shutil.rmtree(self._directory / name)
            return True

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    @staticmethod
    def _check(request: models.CreateCollection) -> None:
        if not isinstance(request.vectors or {}, dict):
            raise Refused(400, "the double serves named vectors only")
        for params in (request.vectors or {}).values():
            only(params, "size", "distance")
            if params.distance is not models.Distance.COSINE:
                raise Refused(400, f"the double does not serve distance {params.distance}")
        for sparse in (request.sparse_vectors or {}).values():
            only(sparse, "modifier")
            if sparse.modifier is not models.Modifier.IDF:
                raise Refused(400, "the double serves sparse vectors with the idf modifier only")
