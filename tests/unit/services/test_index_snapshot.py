"""Snapshots, as Qdrant's REST interface has them: no package brings the server, and local mode makes none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from services.index_snapshot import snapshot

KEY = "let-me-in"
Taken = dict[str, list[str]]  # names of snapshots by collection


class Snapshots(BaseHTTPRequestHandler):
    """Answers from the server's `taken`."""

    server: Server

    def do_GET(self) -> None:
        if self.path == "/collections":
            self._answer({"collections": [{"name": name} for name in self.server.taken]})
        else:
            self._answer([_description(name) for name in self._collection()])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        names = self._collection()
        names.append(f"new-{len(names)}")
        self._answer(_description(names[-1]))

    def do_DELETE(self) -> None:
        self._collection().remove(self.path.partition("?")[0].rpartition("/")[2])
        self._answer(True)

    def log_message(self, *_: object) -> None:
        pass

    def _collection(self) -> list[str]:
        return self.server.taken[self.path.split("/")[2]]

    def _answer(self, result: object) -> None:
        allowed = self.headers["api-key"] == KEY
        body = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode() if allowed else b"{}"
        self.send_response(200 if allowed else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    def __init__(self, taken: Taken) -> None:
        super().__init__(("127.0.0.1", 0), Snapshots)
        self.taken = taken


def _description(name: str) -> dict[str, object]:
    day = "09" if name.startswith("new") else name[-2:]
    return {"name": name, "size": 1, "creation_time": f"2026-01-{day}T00:00:00"}


@pytest.fixture
def server() -> Iterator[Server]:
    taken = {
        "evospec-tokens-64-ab": ["z-01", "b-02", "c-03"],
        "evospec-tokens-a-64-ab": [],
        "other": ["o-01"],
    }
    with Server(taken) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def config(server: Server, key: str | None = KEY) -> SemanticConfig:
    return SemanticConfig(url=f"http://127.0.0.1:{server.server_address[1]}", api_key=key)


def test_each_collection_of_ours_gets_one_and_the_oldest_go(server: Server) -> None:
    assert snapshot(config(server), keep=2) == ["evospec-tokens-64-ab/new-3", "evospec-tokens-a-64-ab/new-0"]
    assert server.taken == {
        "evospec-tokens-64-ab": ["c-03", "new-3"],
        "evospec-tokens-a-64-ab": ["new-0"],
        "other": ["o-01"],
    }


def test_a_refusal_says_what_to_check(server: Server) -> None:
    with pytest.raises(TokenIndexError, match=r"^Qdrant at http://127\S+ answered 401 .*semantic\.api_key"):
        snapshot(config(server, "wrong"), keep=2)
    assert server.taken["evospec-tokens-64-ab"] == ["z-01", "b-02", "c-03"]


def test_an_embedded_index_has_none() -> None:
    with pytest.raises(TokenIndexError, match=r"^semantic\.url is not set"):
        snapshot(SemanticConfig(), keep=2)
