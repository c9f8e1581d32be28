"""Whatever the Qdrant server does wrong, the caller gets a TokenIndexError of one line."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler

import pytest

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from services.token_index import open_token_index
from tests.integration.qdrant_rest import Qdrant, reply
from tests.integration.token_index_kit import DIM, TARGET, assert_calls_fail, axis, point


def test_the_api_key_is_sent_and_asked_for() -> None:
    with Qdrant(api_key="secret") as qdrant:
        with pytest.raises(TokenIndexError, match=r"401 .*check semantic\.api_key"):
            open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)
        with pytest.warns(UserWarning, match="insecure connection"):
            index = open_token_index(SemanticConfig(url=qdrant.url, api_key="secret"), TARGET, DIM)
        with closing(index):
            assert index.count() == 0


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, code, body, **headers)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def half_an_answer(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"result": ')
    handler.wfile.flush()
    hang_up(handler)


def until(released: threading.Event) -> None:
    released.wait(60)


def result(content: object) -> Callable[[BaseHTTPRequestHandler], None]:
    return status(200, json.dumps({"result": content, "status": "ok", "time": 0.0}).encode())


FAULTS = {
    "500": (status(500, b"boom"), "answered 500"),
    "503": (status(503, b"<html>"), "answered 503"),
    "429": (status(429, b"{}", Retry_After="7"), "overloaded .*7 s"),
    "429 without a time": (status(429, b"slow down"), "429 .*overloaded"),
    "429 with nonsense": (status(429, b"{}", Retry_After="soon"), "Retry-After"),
    "redirect": (status(302, b"", Location="http://example.invalid/"), "answered 302"),
    "no JSON": (status(200, b"<html>welcome</html>"), "not Qdrant's|failed"),
    "empty": (status(200, b""), "not Qdrant's|failed"),
    "no result": (result(None), "failed"),
    "another result": (result({"unexpected": [1, 2]}), "not Qdrant's"),
    "hung up": (hang_up, "not reachable"),
    "cut off": (half_an_answer, "not reachable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_server_are_token_index_errors(qdrant: Qdrant, fault: str) -> None:
    answer, message = FAULTS[fault]
    with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        qdrant.fault = answer
        assert_calls_fail(index, message, qdrant.url)
        qdrant.fault = None
        assert index.search(axis(0)[None], "a", 8)[0].token_ids == (1,)  # and it recovers


def test_a_slow_server_is_a_token_index_error(qdrant: Qdrant) -> None:
    with closing(open_token_index(SemanticConfig(url=qdrant.url, deadline_s=0.2), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        qdrant.fault = lambda _: until(qdrant.released)
        with pytest.raises(TokenIndexError, match="did not answer in time"):
            index.search(axis(0)[None], "a", 8)


@pytest.mark.parametrize(
    "payload",
    [
        {"token_ids": "1 2", "weights": "1", "merges": 1},
        {"token_ids": [1, 2], "weights": [1.0, 1.0], "merges": 1},
        {"token_ids": "1", "weights": "heavy", "merges": 1},
        {},
        None,
    ],
)
def test_a_foreign_payload_is_named(qdrant: Qdrant, payload: dict[str, object] | None) -> None:
    found = {"id": 7, "version": 1, "score": 0.9, "payload": payload}
    with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        qdrant.fault = result([{"points": [found]}])
        with pytest.raises(TokenIndexError, match=r"point 7 of .* delete it"):
            index.search(axis(0)[None], "a", 8)


def test_nobody_listening_is_one_clear_line_at_start() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TokenIndexError, match=r"not reachable .*semantic\.url") as caught:
            open_token_index(SemanticConfig(url=url), TARGET, DIM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "not a url"])
def test_unusable_urls_are_token_index_errors(url: str) -> None:
    with pytest.raises(TokenIndexError):
        open_token_index(SemanticConfig(url=url), TARGET, DIM)
