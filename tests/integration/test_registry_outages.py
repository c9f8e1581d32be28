"""The weight registry when its server is away, slow, full, or something else altogether."""

from __future__ import annotations

import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import RegistryError
from services import registry_reader
from services import valkey as valkey_module
from services.registry import RedisWeightRegistry, open_registry
from services.valkey import EmbeddedValkey
from tests.integration.registry_kit import (
    PATIENCE_S,
    blob_of,
    decide,
    eventually,
    one_line,
    publish,
    server_binary,
)

# --- wake-ups ----------------------------------------------------------------------------------


def test_wait_is_woken_by_a_publication(
    registry_config: RegistryConfig, registry: RedisWeightRegistry
) -> None:
    with closing(open_registry(registry_config)) as replica, ThreadPoolExecutor(1) as pool:
        assert replica.wait(PATIENCE_S)  # subscribed: what came before may have been missed
        assert not replica.wait(0.05)
        waiting = pool.submit(replica.wait, PATIENCE_S)
        publish(registry, 1)
        assert waiting.result(PATIENCE_S)
        assert replica.rollout().stable == 1
        assert not replica.wait(0.0)


def test_several_publications_are_one_hint(
    registry_config: RegistryConfig, registry: RedisWeightRegistry
) -> None:
    with closing(open_registry(registry_config)) as replica:
        assert replica.wait(PATIENCE_S)
        for version in (1, 2, 3):
            publish(registry, version)
        # The last message may still be on its way when the first is read.
        assert eventually(lambda: replica.wait(0.1) and replica.rollout().stable == 3)
        assert eventually(lambda: not replica.wait(0.05))


def test_wait_reports_a_reconnect(registry: RedisWeightRegistry, raw: Redis) -> None:
    assert registry.wait(PATIENCE_S)
    assert not registry.wait(0.05)
    raw.client_kill_filter(_type="pubsub")
    assert registry.wait(PATIENCE_S)
    assert not registry.wait(0.05)


def test_close_ends_a_wait(registry_config: RegistryConfig) -> None:
    registry = open_registry(registry_config)
    assert registry.wait(PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(registry.wait, 2 * PATIENCE_S)
        registry.close()
        with pytest.raises(RegistryError, match="closed"):
            waiting.result(PATIENCE_S)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_a_restart_of_the_server_is_survived(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedValkey(tmp_path, binary=server_binary(kind))
    server.start()
    port = urlsplit(server.url).port
    with closing(open_registry(RegistryConfig(url=server.url))) as registry:
        publish(registry, 1)
        assert registry.wait(PATIENCE_S)
        server.stop()
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                assert not registry.wait(0.05)
            with pytest.raises(RegistryError, match=rf"127\.0\.0\.1:{port}/0 is not reachable"):
                registry.rollout()
            with pytest.raises(RegistryError, match="cannot publish version 2"):
                publish(registry, 2)
            _restart_on(server, port)
            assert registry.wait(PATIENCE_S)
        assert registry.fetch(registry.rollout().stable).blob == blob_of(1)  # tmp_path kept it
        publish(registry, 2)
        server.stop()
    messages = [record.message for record in caplog.records if record.name == "services.wakeup"]
    assert [message.split(" from")[0] for message in messages] == ["no wake-ups", "wake-ups"]


def _restart_on(server: EmbeddedValkey, port: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(valkey_module, "_free_port", lambda: port)
        server.start()


# --- errors ------------------------------------------------------------------------------------


def test_nobody_listening_is_one_clear_line_at_start() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(RegistryError) as caught:
            open_registry(RegistryConfig(url=f"redis://user:hunter2@127.0.0.1:{port}/0"))
    text = one_line(caught.value, "hunter2", "user")
    assert f"redis://127.0.0.1:{port}/0 is not reachable" in text
    assert "registry.url" in text


def test_a_server_that_never_answers_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_reader, "CONTROL_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with pytest.raises(RegistryError, match="did not answer in time") as caught:
            open_registry(RegistryConfig(url=url))
    one_line(caught.value)


def test_a_server_that_speaks_something_else_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as web, ThreadPoolExecutor(1) as pool:
        stop = threading.Event()

        def answer() -> None:
            web.settimeout(0.1)
            while not stop.is_set():
                try:
                    connection, _ = web.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = pool.submit(answer)
        try:
            with pytest.raises(RegistryError, match="cannot open the weight registry") as caught:
                open_registry(RegistryConfig(url=f"redis://127.0.0.1:{web.getsockname()[1]}/0"))
        finally:
            stop.set()
        answering.result()
    one_line(caught.value)


def test_a_wrong_password_is_named_but_not_shown(redis_server: EmbeddedValkey) -> None:
    port = urlsplit(redis_server.url).port
    with pytest.raises(RegistryError, match="refused the credentials") as caught:
        open_registry(RegistryConfig(url=f"redis://:hunter2@127.0.0.1:{port}/0"))
    one_line(caught.value, "hunter2")


def test_keys_of_another_program_are_named(registry: RedisWeightRegistry, raw: Redis) -> None:
    raw.hset("test:rollout", "stable", "main")
    with pytest.raises(
        RegistryError, match=r"redis://.* holds a stable version .*'main'.* registry\.namespace"
    ):
        registry.rollout()
    with pytest.raises(RegistryError, match="holds a rollout"):
        decide(registry, "promote", 1)
    raw.hset("test:rollout", mapping={"stable": 0, "canary": '"all"'})
    with pytest.raises(RegistryError, match="holds a list of canary replicas that"):
        registry.rollout()
    raw.delete("test:rollout")
    raw.xadd("test:events", {"event": "logged in", "version": 1})
    with pytest.raises(RegistryError, match=r"holds event '\d+-0' that can't be read"):
        registry.events()
    raw.delete("test:events")
    raw.lpush("test:acknowledgements", "x")
    with pytest.raises(RegistryError, match=r"registry\.namespace") as caught:
        registry.acknowledgements()
    one_line(caught.value)
    raw.set("test:versions", "x")
    with pytest.raises(RegistryError, match="cannot publish version 1"):
        publish(registry, 1)
    assert registry.rollout().stable == 0  # the pointer moves last


def test_a_full_server_is_named(registry: RedisWeightRegistry, raw: Redis) -> None:
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(RegistryError, match="out of memory") as caught:
            publish(registry, 1)
    finally:
        raw.config_set("maxmemory", 0)
    one_line(caught.value)
    assert registry.rollout().stable == 0


def test_a_missing_permission_is_named(redis_server: EmbeddedValkey, raw: Redis) -> None:
    raw.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["*"], commands=["+ping", "+hmget"])
    port = urlsplit(redis_server.url).port
    with closing(open_registry(RegistryConfig(url=f"redis://reader:pw@127.0.0.1:{port}/0"))) as reader:
        assert reader.rollout().stable == 0
        with pytest.raises(RegistryError, match="denied the command"):
            reader.acquire_epoch()


def test_a_missing_url_says_what_to_do() -> None:
    with pytest.raises(RegistryError, match="EmbeddedValkey"):
        open_registry(RegistryConfig())


def test_secrets_stay_out_of_representations(
    redis_server: EmbeddedValkey, registry: RedisWeightRegistry
) -> None:
    password = urlsplit(redis_server.url).password
    assert password
    assert password not in repr(redis_server) + repr(registry)
