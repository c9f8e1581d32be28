"""The part of Qdrant's gRPC interface that the token index uses, from the package's own definitions.

Like `qdrant_rest`, it answers from qdrant-client's local mode, so that messages, deadlines, keys and
certificates cross a socket without a Qdrant server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import (
    CollectionsServicer,
    add_CollectionsServicer_to_server,
)
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server
from typing_extensions import override

Fault = Callable[[grpc.ServicerContext], None]


@dataclass
class GrpcQdrant:
    """A server with the state of a `:memory:` client; `fault` is called before each answer while set."""

    api_key: str | None = None
    credentials: grpc.ServerCredentials | None = None
    fault: Fault | None = None
    client: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:"))
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.released = threading.Event()  # lets slow answers end with the test
        self.turns = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8), interceptors=[_Gate(self)])
        add_CollectionsServicer_to_server(_Collections(self), self._server)
        add_PointsServicer_to_server(_Points(self), self._server)
        if self.credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", self.credentials)

    def __enter__(self) -> GrpcQdrant:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.stop(None).wait(10)
        self.client.close()


class _Gate(grpc.ServerInterceptor):
    """Asks for the key, and answers badly where it is told to."""

    def __init__(self, qdrant: GrpcQdrant) -> None:
        self._qdrant = qdrant

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(details)
        if handler is None:
            return None
        qdrant, keys = self._qdrant, dict(details.invocation_metadata)
        qdrant.calls.append(details.method.rpartition("/")[2])

        def serve(request: Any, context: grpc.ServicerContext) -> Any:
            if qdrant.api_key is not None and keys.get("api-key") != qdrant.api_key:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Must provide an API key")
            if qdrant.fault is not None:
                qdrant.fault(context)
            with qdrant.turns:
                return _answered(handler, request, context)

        return grpc.unary_unary_rpc_method_handler(
            serve, handler.request_deserializer, handler.response_serializer
        )


def _answered(handler: grpc.RpcMethodHandler, request: Any, context: grpc.ServicerContext) -> Any:
    assert handler.unary_unary is not None
    try:
        return handler.unary_unary(request, context)
    except ValueError as error:  # local mode's word for a collection that is not there
        context.abort(grpc.StatusCode.NOT_FOUND, str(error))


class _Collections(CollectionsServicer):
    def __init__(self, qdrant: GrpcQdrant) -> None:
        self._client = qdrant.client

    @override
    def List(self, request: Any, context: grpc.ServicerContext) -> Any:
        found = self._client.get_collections().collections
        described = [messages.CollectionDescription(name=each.name) for each in found]
        return messages.ListCollectionsResponse(collections=described)

    @override
    def CollectionExists(self, request: Any, context: grpc.ServicerContext) -> Any:
        exists = self._client.collection_exists(request.collection_name)
        return messages.CollectionExistsResponse(result=messages.CollectionExists(exists=exists))

    @override
    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        info = self._client.get_collection(request.collection_name)
        return messages.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    @override
    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self._client.collection_exists(request.collection_name):
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "the collection exists")
        vectors = GrpcToRest.convert_vectors_config(request.vectors_config)
        self._client.create_collection(request.collection_name, vectors)
        return messages.CollectionOperationResponse(result=True)

    @override
    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:
        done = self._client.delete_collection(request.collection_name)
        return messages.CollectionOperationResponse(result=done)


class _Points(PointsServicer):
    def __init__(self, qdrant: GrpcQdrant) -> None:
        self._client = qdrant.client

    @override
    def CreateFieldIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _completed()

    @override
    def Upsert(self, request: Any, context: grpc.ServicerContext) -> Any:
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        self._client.upsert(request.collection_name, points)
        return _completed()

    @override
    def UpdateBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        operations = [GrpcToRest.convert_points_update_operation(each) for each in request.operations]
        self._client.batch_update_points(request.collection_name, operations)
        return messages.UpdateBatchResponse(result=[_completed().result for _ in operations])

    @override
    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._client.delete(request.collection_name, GrpcToRest.convert_points_selector(request.points))
        return _completed()

    @override
    def Count(self, request: Any, context: grpc.ServicerContext) -> Any:
        counted = self._client.count(request.collection_name)
        return messages.CountResponse(result=RestToGrpc.convert_count_result(counted))

    @override
    def Scroll(self, request: Any, context: grpc.ServicerContext) -> Any:
        records, _ = self._client.scroll(
            request.collection_name,
            limit=request.limit,
            order_by=GrpcToRest.convert_order_by(request.order_by),
            with_payload=GrpcToRest.convert_with_payload_selector(request.with_payload),
        )
        return messages.ScrollResponse(result=[RestToGrpc.convert_record(record) for record in records])

    @override
    def QueryBatch(self, request: Any, context: grpc.ServicerContext) -> Any:
        requests = [GrpcToRest.convert_query_points(query) for query in request.query_points]
        answers = self._client.query_batch_points(request.collection_name, requests)
        results = [
            messages.BatchResult(result=[_scored(point) for point in answer.points]) for answer in answers
        ]
        return messages.QueryBatchResponse(result=results)


def _scored(point: models.ScoredPoint) -> Any:
    return RestToGrpc.convert_scored_point(point)


def _completed() -> Any:
    result = messages.UpdateResult(operation_id=0, status=messages.UpdateStatus.Completed)
    return messages.PointsOperationResponse(result=result)
