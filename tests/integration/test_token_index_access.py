"""The token index on a server reached by gRPC, and over TLS."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from pydantic import ValidationError

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from services.token_index import open_token_index
from tests.integration.certificate_kit import Authority
from tests.integration.qdrant_grpc import Fault, GrpcQdrant
from tests.integration.qdrant_rest import Qdrant
from tests.integration.token_index_kit import DIM, TARGET, assert_calls_fail, axis, point, random_points

HOST = "http://127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "authority")


# --- gRPC ---------------------------------------------------------------------------------


def over_grpc(qdrant: GrpcQdrant, **settings: str | float) -> SemanticConfig:
    return SemanticConfig(**{"url": HOST, "grpc_port": qdrant.port, **settings})


def test_points_travel_over_grpc() -> None:
    with GrpcQdrant() as qdrant, closing(open_token_index(over_grpc(qdrant), TARGET, DIM)) as index:
        near = axis(0, towards=1, cosine=0.8)
        index.write([point(axis(0), {5: 1.0, 6: 2.0}), point(near, {6: 1.0, 7: 4.0})])
        index.write([point(axis(0), {5: 3.0}), point(axis(0), {9: 1.0}, tenant="b")])  # the first is merged
        hits = index.search(np.stack([axis(0), axis(1)]), "a", 2)
        assert index.count() == 3
    assert hits[0].token_ids == (7, 5, 6)
    assert hits[0].weights == pytest.approx((3.2, 2.0, 1.8), abs=1e-5)
    assert hits[1].token_ids == (7, 6)  # of the near point only: the other is at a right angle
    assert "QueryBatch" in qdrant.calls


def test_bounds_hold_over_grpc() -> None:
    with (
        GrpcQdrant() as qdrant,
        closing(open_token_index(over_grpc(qdrant, max_points=20), TARGET, 64)) as index,
    ):
        points = random_points(50)
        for start in range(0, 50, 5):
            index.write(points[start : start + 5])
            assert index.count() <= 20
        assert index.search(points[-1].vector[None], "a", 1)[0].token_ids == (49,)


def test_the_api_key_is_sent_over_grpc() -> None:
    with GrpcQdrant(api_key="secret") as qdrant:
        with pytest.raises(TokenIndexError, match=r"UNAUTHENTICATED .*check semantic\.api_key"):
            open_token_index(over_grpc(qdrant), TARGET, DIM)
        with pytest.warns(UserWarning, match="insecure connection"):
            index = open_token_index(over_grpc(qdrant, api_key="secret"), TARGET, DIM)
        with closing(index):
            assert index.count() == 0


def status(code: grpc.StatusCode) -> Fault:
    return lambda context: context.abort(code, "as told")


FAULTS = {
    "unavailable": (status(grpc.StatusCode.UNAVAILABLE), "not reachable .*grpc_port"),
    "overloaded": (status(grpc.StatusCode.RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED .*try again later"),
    "forbidden": (status(grpc.StatusCode.PERMISSION_DENIED), "PERMISSION_DENIED .*rights"),
    "unknown call": (status(grpc.StatusCode.UNIMPLEMENTED), r"check semantic\.grpc_port"),
    "internal": (status(grpc.StatusCode.INTERNAL), "INTERNAL .*the server's log"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_over_grpc_are_token_index_errors(fault: str) -> None:
    answer, message = FAULTS[fault]
    with GrpcQdrant() as qdrant, closing(open_token_index(over_grpc(qdrant), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        qdrant.fault = answer
        assert_calls_fail(index, message, f"{HOST} (gRPC port {qdrant.port})")
        qdrant.fault = None
        assert index.search(axis(0)[None], "a", 8)[0].token_ids == (1,)  # and it recovers


def test_a_slow_server_over_grpc_is_a_token_index_error() -> None:
    with (
        GrpcQdrant() as qdrant,
        closing(open_token_index(over_grpc(qdrant, deadline_s=0.2), TARGET, DIM)) as index,
    ):
        index.write([point(axis(0), {1: 1.0})])
        qdrant.fault = waits_for(qdrant.released)
        with pytest.raises(TokenIndexError, match="did not answer in time"):
            index.search(axis(0)[None], "a", 8)


def waits_for(released: threading.Event) -> Callable[[grpc.ServicerContext], None]:
    def hold(_: grpc.ServicerContext) -> None:
        released.wait(60)

    return hold


def test_a_collection_made_meanwhile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with GrpcQdrant() as qdrant:
        with closing(open_token_index(over_grpc(qdrant), TARGET, DIM)) as index:
            index.write([point(axis(0), {1: 1.0})])
        with closing(open_token_index(over_grpc(qdrant), TARGET, DIM)) as index:
            answers = iter([False, True])  # another writer comes between the question and the making
            monkeypatch.setattr(index._store._client, "collection_exists", lambda _: next(answers, True))
            index.write([point(axis(1), {2: 1.0})])
            assert index.count() == 2


# --- TLS ----------------------------------------------------------------------------------


def test_rest_over_tls_needs_the_authority(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("rest")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Qdrant(api_key="secret", tls=context) as qdrant:
        assert qdrant.url.startswith("https://")
        trusting = SemanticConfig(url=qdrant.url, api_key="secret", ca_file=str(authority.certificate))
        with closing(open_token_index(trusting, TARGET, DIM)) as index:
            index.write([point(axis(0), {1: 1.0})])
            assert index.search(axis(0)[None], "a", 8)[0].token_ids == (1,)
        with pytest.raises(TokenIndexError, match=r"not reachable .*certificate"):
            open_token_index(SemanticConfig(url=qdrant.url, api_key="secret"), TARGET, DIM)
        other = Authority.make(tmp_path / "other")
        with pytest.raises(TokenIndexError, match=r"not reachable .*certificate"):
            open_token_index(
                SemanticConfig(url=qdrant.url, api_key="secret", ca_file=str(other.certificate)), TARGET, DIM
            )


def test_grpc_over_tls_needs_the_authority(authority: Authority) -> None:
    certificate, key = authority.issue("grpc")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    with GrpcQdrant(api_key="secret", credentials=credentials) as qdrant:
        encrypted = {"url": "https://127.0.0.1", "api_key": "secret"}
        trusting = over_grpc(qdrant, **encrypted, ca_file=str(authority.certificate))
        with closing(open_token_index(trusting, TARGET, DIM)) as index:
            index.write([point(axis(0), {1: 1.0})])
            assert index.search(axis(0)[None], "a", 8)[0].token_ids == (1,)
        with pytest.raises(TokenIndexError, match="not reachable"):
            open_token_index(over_grpc(qdrant, **encrypted), TARGET, DIM)


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    config = SemanticConfig(url="https://127.0.0.1", ca_file=str(file))
    with pytest.raises(TokenIndexError, match=r"semantic\.ca_file .*ca\.pem"):
        open_token_index(config, TARGET, DIM)


@pytest.mark.parametrize("option", [{"grpc_port": 6334}, {"ca_file": "ca.pem"}])
def test_options_of_a_server_need_one(option: dict[str, str | int]) -> None:
    with pytest.raises(ValidationError, match="set url as well"):
        SemanticConfig(**option)
