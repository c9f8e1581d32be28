"""The registry through Sentinel: a primary, its copy, and real sentinels that watch them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import RegistryError
from evospec.wire import Rollout
from services.registry import RedisWeightRegistry, open_registry
from services.valkey import EmbeddedValkey
from tests.integration.registry_kit import PATIENCE_S, blob_of, decide, eventually, one_line, publish
from tests.integration.server_kit import HOST, NOBODY, Server, binary_of, free_ports, plain_settings

SERVICE = "weights"
PASSWORD = "sesame"


@dataclass(frozen=True, slots=True)
class Watched:
    """Two data servers and a sentinel; a second sentinel is named in the URL and does not run."""

    first: Server
    second: Server
    sentinel: Server

    @property
    def config(self) -> RegistryConfig:
        hosts = f"{NOBODY},{HOST}:{self.sentinel.port}"
        return RegistryConfig(url=f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0", namespace="test")

    def primary_port(self) -> int:
        """As the sentinel sees it."""
        with closing(Redis(HOST, self.sentinel.port)) as client:
            address = client.sentinel_get_master_addr_by_name(SERVICE)
        assert isinstance(address, tuple)
        return int(address[1])

    def has_copy(self) -> bool:
        """Whether the sentinel knows a copy that follows the primary, and so can take over."""
        with closing(Redis(HOST, self.sentinel.port)) as client:
            copies = client.sentinel_slaves(SERVICE)
        return any(copy["master-link-status"] == "ok" and not copy["is_sdown"] for copy in copies)

    def wait_for_copy(self) -> None:
        """Until the copy has all that was written."""
        with closing(Redis(HOST, self.first.port, password=PASSWORD)) as client:
            client.set("last", 1)  # WAIT is for the writes of its own connection
            assert eventually(lambda: client.wait(1, 1000) == 1)


@pytest.fixture(params=["valkey", "redis"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    binary = binary_of(request.param)
    ports = free_ports(3)
    login = [f"requirepass {PASSWORD}", f"masterauth {PASSWORD}"]
    copying = [f"replicaof {HOST} {ports[0]}", "repl-diskless-sync-delay 0"]
    watching = [
        f"port {ports[2]}",
        f"sentinel monitor {SERVICE} {HOST} {ports[0]} 1",
        f"sentinel auth-pass {SERVICE} {PASSWORD}",
        f"sentinel down-after-milliseconds {SERVICE} 1000",
    ]
    with ExitStack() as running:
        first = Server(binary, tmp_path / "first", ports[0], [*plain_settings(ports[0]), *login, copying[1]])
        second = Server(binary, tmp_path / "second", ports[1], [*plain_settings(ports[1]), *login, *copying])
        sentinel = Server(binary, tmp_path / "sentinel", ports[2], watching, "--sentinel")
        group = Watched(*[running.enter_context(server) for server in (first, second, sentinel)])
        assert eventually(group.has_copy)
        yield group


def test_the_registry_works_through_sentinels(watched: Watched) -> None:
    with (
        closing(open_registry(watched.config)) as registry,
        closing(open_registry(watched.config)) as replica,
    ):
        assert replica.wait(PATIENCE_S)
        publish(registry, 1, training_state=b"moments")
        assert replica.wait(PATIENCE_S)
        assert replica.fetch(1).blob == blob_of(1)
        assert replica.fetch_training_state(1) == b"moments"
        text = repr(registry)
        assert PASSWORD not in text
        assert f"{HOST}:{watched.sentinel.port}/{SERVICE}/0" in text
    with closing(Redis(HOST, watched.first.port, password=PASSWORD)) as primary:
        assert primary.exists("test:w:1")  # it went to the primary, not to the copy


def test_a_failover_is_followed(watched: Watched) -> None:
    """Both connections and the subscription move to the new primary, and nothing is lost."""
    with (
        closing(open_registry(watched.config)) as registry,
        closing(open_registry(watched.config)) as replica,
    ):
        assert replica.wait(PATIENCE_S)
        publish(registry, 1, registry.acquire_epoch())
        publish(registry, 2, state="candidate")
        decide(registry, "canary", 2, "a")
        watched.wait_for_copy()
        watched.first.kill()
        assert eventually(lambda: watched.primary_port() == watched.second.port)
        assert eventually(lambda: promoted(registry))
        assert registry.rollout() == Rollout(4, 2)
        assert registry.acquire_epoch() == 2
        publish(registry, 3, 2)
        assert eventually(lambda: replica.wait(1.0) and replica.rollout().stable == 3)
        assert replica.fetch(3).blob == blob_of(3)
        with closing(Redis(HOST, watched.second.port, password=PASSWORD)) as primary:
            assert primary.role()[0] == b"master"
            assert primary.exists("test:w:3")
            assert eventually(lambda: primary.pubsub_numsub("test:wakeup")[0][1] == 1)


def promoted(registry: RedisWeightRegistry) -> bool:
    """Tries to promote version 2; the new primary may still be taking over."""
    try:
        decide(registry, "promote", 2)
    except RegistryError as error:
        one_line(error, PASSWORD)
        return False
    return True


def test_no_sentinel_at_all_is_one_clear_line() -> None:
    url = f"redis+sentinel://:{PASSWORD}@{NOBODY},{NOBODY}/{SERVICE}"
    with pytest.raises(RegistryError, match=r"no sentinel of .* names a running primary") as caught:
        open_registry(RegistryConfig(url=url))
    one_line(caught.value, PASSWORD)


def test_a_server_that_is_no_sentinel_is_one_clear_line(redis_server: EmbeddedValkey) -> None:
    with closing(Redis.from_url(redis_server.url)) as client:
        port = client.connection_pool.connection_kwargs["port"]
    with pytest.raises(RegistryError, match="cannot open the weight registry") as caught:
        open_registry(RegistryConfig(url=f"redis+sentinel://:{PASSWORD}@{HOST}:{port}/{SERVICE}"))
    one_line(caught.value, PASSWORD)


def test_a_service_that_is_not_watched_is_one_clear_line(watched: Watched) -> None:
    url = f"redis+sentinel://:{PASSWORD}@{HOST}:{watched.sentinel.port}/other"
    with pytest.raises(RegistryError, match="names a running primary") as caught:
        open_registry(RegistryConfig(url=url))
    one_line(caught.value, PASSWORD)


def test_a_wrong_password_is_one_clear_line(watched: Watched) -> None:
    url = f"redis+sentinel://:wrong@{HOST}:{watched.sentinel.port}/{SERVICE}"
    with pytest.raises(RegistryError, match="refused the credentials") as caught:
        open_registry(RegistryConfig(url=url))
    one_line(caught.value, "wrong@")
