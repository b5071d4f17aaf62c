"""The gRPC face: the same calls, through the client's own conversions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc as rpc
from qdrant_client import grpc
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http import models

from tests.contracts.qdrant_double.engine import Engine
from tests.contracts.qdrant_double.faults import Faults
from tests.contracts.qdrant_double.translate import Refused

T = TypeVar("T")

_CODES = {
    400: rpc.StatusCode.INVALID_ARGUMENT,
    401: rpc.StatusCode.UNAUTHENTICATED,
    404: rpc.StatusCode.NOT_FOUND,
    409: rpc.StatusCode.ALREADY_EXISTS,
    422: rpc.StatusCode.INVALID_ARGUMENT,
    429: rpc.StatusCode.RESOURCE_EXHAUSTED,
    500: rpc.StatusCode.INTERNAL,
    503: rpc.StatusCode.UNAVAILABLE,
}


class _Face:
    def __init__(self, engine: Engine, faults: Faults, version: str, api_key: str | None) -> None:
        self.engine, self.version = engine, version
        self._faults, self._api_key = faults, api_key

    def answer(self, context: Any, operation: str, call: Callable[[], T]) -> T:
        """What `call` returns, or the error, or the fault that is due."""
        key = dict(context.invocation_metadata()).get("api-key")
        if self._api_key is not None and operation != "version" and key != self._api_key:
            context.abort(rpc.StatusCode.UNAUTHENTICATED, "Must provide an API key")
        fault = self._faults.draw(operation)
        if fault == "timeout":
            time.sleep(self._faults.timeout_s)
            context.abort(rpc.StatusCode.UNAVAILABLE, "made to fail (timeout)")
        if fault == "429":
            context.set_trailing_metadata((("retry-after", "1"),))
        if fault in ("429", "429-bare", "500", "503"):
            context.abort(_CODES[int(fault[:3])], f"made to fail ({fault})")
        if fault in ("reset", "garbage"):
            context.abort(rpc.StatusCode.UNAVAILABLE, f"made to fail ({fault})")
        try:
            result = call()
        except Refused as refusal:
            context.abort(_CODES[refusal.status], refusal.message)
        except Exception as exc:  # noqa: BLE001 -- the engine raises nothing narrower
            context.abort(rpc.StatusCode.INTERNAL, f"Service internal error: {exc}")
        if fault == "lost":
            context.abort(rpc.StatusCode.UNAVAILABLE, "made to fail (lost)")
        if fault == "unfinished" and isinstance(result, grpc.PointsOperationResponse):
            result.result.status = grpc.UpdateStatus.WaitTimeout
        if fault == "unfinished" and isinstance(result, grpc.UpdateBatchResponse):
            result.result[0].status = grpc.UpdateStatus.WaitTimeout
        return result

    def written(self, request: Any) -> Any:
        """The answer to a write that was done."""
        done = models.UpdateStatus.COMPLETED if request.wait else models.UpdateStatus.ACKNOWLEDGED
        result = models.UpdateResult(operation_id=0, status=done)
        return grpc.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))


class _Root(grpc.QdrantServicer):  # type: ignore[misc]
    def __init__(self, face: _Face) -> None:
        self._face = face

    def HealthCheck(self, request: Any, context: Any) -> Any:
        reply = grpc.HealthCheckReply(title="qdrant double", version=self._face.version)
        return self._face.answer(context, "version", lambda: reply)


class _Collections(grpc.CollectionsServicer):  # type: ignore[misc]
    def __init__(self, face: _Face) -> None:
        self._face = face

    def Get(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            info = self._face.engine.get(request.collection_name).info()
            return grpc.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

        return self._face.answer(context, "info", call)

    def Create(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            _only(request, "collection_name", *models.CreateCollection.model_fields)
            created = models.CreateCollection(
                vectors=GrpcToRest.convert_vectors_config(request.vectors_config),
                sparse_vectors=GrpcToRest.convert_sparse_vector_config(
                    request.sparse_vectors_config
                ),
                shard_number=request.shard_number,
                replication_factor=request.replication_factor,
                write_consistency_factor=request.write_consistency_factor,
                hnsw_config=GrpcToRest.convert_hnsw_config_diff(request.hnsw_config),
                metadata=GrpcToRest.convert_payload(request.metadata),
            )
            self._face.engine.create(request.collection_name, created)
            return grpc.CollectionOperationResponse(result=True)

        return self._face.answer(context, "create", call)

    def Delete(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            done = self._face.engine.delete(request.collection_name)
            return grpc.CollectionOperationResponse(result=done)

        return self._face.answer(context, "drop", call)


class _Points(grpc.PointsServicer):  # type: ignore[misc]
    def __init__(self, face: _Face) -> None:
        self._face = face

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            schema = GrpcToRest.convert_payload_schema_params(request.field_index_params)
            index = models.CreateFieldIndex(field_name=request.field_name, field_schema=schema)
            self._face.engine.get(request.collection_name).create_index(index)
            return self._face.written(request)

        return self._face.answer(context, "index", call)

    def Upsert(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            _only(request, "collection_name", "points", "wait", "ordering")
            points = [GrpcToRest.convert_point_struct(point) for point in request.points]
            body = models.PointsList(points=points)
            self._face.engine.get(request.collection_name).upsert(body)
            return self._face.written(request)

        return self._face.answer(context, "upsert", call)

    def Delete(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            _only(request, "collection_name", "points", "wait", "ordering")
            selector = GrpcToRest.convert_points_selector(request.points)
            self._face.engine.get(request.collection_name).delete(selector)
            return self._face.written(request)

        return self._face.answer(context, "delete", call)

    def UpdateBatch(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            _only(request, "collection_name", "operations", "wait", "ordering")
            body = models.UpdateOperations(
                operations=[
                    GrpcToRest.convert_points_update_operation(given)
                    for given in request.operations
                ]
            )
            self._face.engine.get(request.collection_name).batch(body)
            written = self._face.written(request).result
            return grpc.UpdateBatchResponse(result=[written] * len(body.operations))

        return self._face.answer(context, "batch", call)

    def Query(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            fields = ("query", "using", "filter", "params", "limit", "with_payload", "with_vectors")
            _only(request, "collection_name", *fields)
            body = models.QueryRequest(
                query=GrpcToRest.convert_query(request.query),
                using=request.using,
                filter=_filter(request),
                params=GrpcToRest.convert_search_params(request.params),
                limit=request.limit,
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
            found = self._face.engine.get(request.collection_name).query(body).points
            points = [RestToGrpc.convert_scored_point(point) for point in found]
            return grpc.QueryResponse(result=points)

        return self._face.answer(context, "query", call)

    def Scroll(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            fields = ("filter", "offset", "limit", "with_payload", "with_vectors")
            _only(request, "collection_name", *fields)
            given = request.HasField("offset")
            body = models.ScrollRequest(
                filter=_filter(request),
                offset=GrpcToRest.convert_point_id(request.offset) if given else None,
                limit=request.limit,
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
            page = self._face.engine.get(request.collection_name).scroll(body)
            offset = page.next_page_offset
            return grpc.ScrollResponse(
                result=[RestToGrpc.convert_record(record) for record in page.points],
                next_page_offset=RestToGrpc.convert_extended_point_id(offset) if offset else None,
            )

        return self._face.answer(context, "scroll", call)

    def Count(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            _only(request, "collection_name", "filter", "exact")
            body = models.CountRequest(filter=_filter(request), exact=request.exact)
            counted = self._face.engine.get(request.collection_name).count(body)
            return grpc.CountResponse(result=grpc.CountResult(count=counted.count))

        return self._face.answer(context, "count", call)

    def Get(self, request: Any, context: Any) -> Any:
        def call() -> Any:
            _only(request, "collection_name", "ids", "with_payload", "with_vectors")
            body = models.PointRequest(
                ids=[GrpcToRest.convert_point_id(id) for id in request.ids],
                with_payload=GrpcToRest.convert_with_payload_interface(request.with_payload),
                with_vector=GrpcToRest.convert_with_vectors_selector(request.with_vectors),
            )
            records = self._face.engine.get(request.collection_name).retrieve(body)
            for record in records:
                record.payload = record.payload or {}
            return grpc.GetResponse(result=[RestToGrpc.convert_record(r) for r in records])

        return self._face.answer(context, "retrieve", call)


def _filter(request: Any) -> models.Filter | None:
    return GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None


def _only(request: Any, *fields: str) -> None:
    more = {field.name for field, _ in request.ListFields()} - set(fields)
    more -= {f"{name}_config" for name in fields}
    if more:
        raise Refused(400, f"the double does not serve {sorted(more)}")


class RpcServer:
    """Serves until closed."""

    def __init__(
        self, engine: Engine, faults: Faults, *, version: str, api_key: str | None, port: int
    ) -> None:
        face = _Face(engine, faults, version, api_key)
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._server = rpc.server(ThreadPoolExecutor(8), options=limits)
        grpc.add_QdrantServicer_to_server(_Root(face), self._server)
        grpc.add_CollectionsServicer_to_server(_Collections(face), self._server)
        grpc.add_PointsServicer_to_server(_Points(face), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def close(self) -> None:
        self._server.stop(grace=None).wait()
