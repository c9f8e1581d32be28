"""The part of Qdrant's REST interface that the token index uses, served from a thread.

No package carries the Qdrant server. So that requests, filters and errors still cross a
socket, this one answers from qdrant-client's local mode, or as badly as it is told to.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Qdrant:
    """A server with the state of a `:memory:` client; `fault` answers in its place while set."""

    api_key: str | None = None
    tls: ssl.SSLContext | None = None
    fault: Answer | None = None
    client: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:"))
    indexed: list[str] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.released = threading.Event()  # lets slow answers end with the test
        self._turns = threading.Lock()
        handler = type("Handler", (_Handler,), {"qdrant": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Qdrant:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self.client.close()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> object:
        """What the server puts into `result`; KeyError for a path that is not served."""
        parts = path.strip("/").split("/")
        name, rest = (parts[1] if len(parts) > 1 else ""), "/".join(parts[2:])
        with self._turns:
            self.requests.append((f"{method} {rest or 'collections'}", body))
            return self._routes()[f"{method} {rest}" if name else "GET collections"](name, body)

    def _routes(self) -> dict[str, Callable[[str, dict[str, Any]], object]]:
        client = self.client
        return {
            "GET collections": lambda _name, _body: client.get_collections(),
            "GET exists": lambda name, _: {"exists": client.collection_exists(name)},
            "GET ": lambda name, _: client.get_collection(name),
            "PUT ": lambda name, body: client.create_collection(
                name, vectors_config=models.VectorParams(**body["vectors"])
            ),
            "DELETE ": lambda name, _: client.delete_collection(name),
            "PUT index": self._index,
            "PUT points": lambda name, body: client.upsert(
                name, points=TypeAdapter(list[models.PointStruct]).validate_python(body["points"])
            ),
            "POST points/batch": lambda name, body: client.batch_update_points(
                name, update_operations=models.UpdateOperations(**body).operations
            ),
            "POST points/delete": lambda name, body: client.delete(
                name, points_selector=models.PointIdsList(**body)
            ),
            "POST points/count": lambda name, _: client.count(name),
            "POST points/scroll": self._scroll,
            "POST points/query/batch": lambda name, body: client.query_batch_points(
                name, requests=models.QueryRequestBatch(**body).searches
            ),
        }

    def _index(self, _: str, body: dict[str, Any]) -> object:
        self.indexed.append(body["field_name"])
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    def _scroll(self, name: str, body: dict[str, Any]) -> object:
        request = models.ScrollRequest(**body)
        records, following = self.client.scroll(
            name,
            limit=request.limit or 10,
            order_by=request.order_by,
            with_payload=request.with_payload or False,
            with_vectors=request.with_vector or False,
        )
        return models.ScrollResult(points=records, next_page_offset=following)


class _Handler(BaseHTTPRequestHandler):
    qdrant: Qdrant

    def do_GET(self) -> None:
        self._serve("GET")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.qdrant.fault is not None:
            self.qdrant.fault(self)
            return
        if self.qdrant.api_key is not None and self.headers.get("api-key") != self.qdrant.api_key:
            reply(self, 401, b"Must provide an API key")
            return
        try:
            result = self.qdrant.answer(method, self.path.split("?")[0], body)
        except ValueError as error:
            reply(self, 404, json.dumps({"status": {"error": str(error)}, "time": 0.0}).encode())
            return
        document = {"result": TypeAdapter(Any).dump_python(result, mode="json"), "status": "ok", "time": 0.0}
        reply(self, 200, json.dumps(document).encode())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Keeps the tests' output clean."""


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
