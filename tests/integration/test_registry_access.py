"""`infra/redis/users.acl` on real servers: what each user may do, and what it may not."""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from evospec.config import RegistryConfig
from evospec.errors import RegistryError
from evospec.wire import Rollout
from services.registry import RedisWeightRegistry, open_registry, open_replica_registry
from tests.integration.registry_kit import PATIENCE_S, blob_of, decide, one_line, publish, states, text
from tests.integration.server_kit import HOST, Server, binary_of, free_port, plain_settings

ACL = Path(__file__).parents[2] / "infra/redis/users.acl"
USERS = ("replica", "aligner", "operator")


def acl_with_passwords() -> str:
    """As the README has it done; each user's password is its name backwards."""
    rules = ACL.read_text()
    for user in USERS:
        placeholder = f"#{user.upper()}_SHA256"
        assert rules.count(placeholder) == 1
        rules = rules.replace(placeholder, f"#{hashlib.sha256(user[::-1].encode()).hexdigest()}")
    return rules


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the ACL, and an administrator for the tests themselves."""
    folder, port = tmp_path_factory.mktemp("guarded"), free_port()
    acl = folder / "users.acl"
    acl.write_text(acl_with_passwords() + "user admin on >admin ~* &* +@all\n")
    settings = [*plain_settings(port), f"aclfile {acl}"]
    with Server(binary_of(request.param), folder / "server", port, settings) as server:
        yield server


@pytest.fixture
def admin(guarded: Server) -> Iterator[Redis]:
    with closing(Redis(HOST, guarded.port, username="admin", password="admin")) as client:
        client.flushall()
        client.acl_log_reset()
        yield client


def url_of(server: Server, user: str) -> str:
    return f"redis://{user}:{user[::-1]}@{HOST}:{server.port}/0"


@pytest.fixture
def config(guarded: Server) -> RegistryConfig:
    return RegistryConfig(url=url_of(guarded, "aligner"), replica_url=url_of(guarded, "replica"))


@pytest.fixture
def aligner(config: RegistryConfig, admin: Redis) -> Iterator[RedisWeightRegistry]:
    """Opened by the aligner's user; version 1 is stable and 2 in its canary."""
    with closing(open_registry(config)) as opened:
        publish(opened, 1, opened.acquire_epoch(), training_state=b"moments")
        publish(opened, 2, state="candidate")
        decide(opened, "canary", 2, "a")
        yield opened


@pytest.fixture
def replica(config: RegistryConfig, aligner: RedisWeightRegistry) -> Iterator[RedisWeightRegistry]:
    with closing(open_replica_registry(config)) as opened:
        yield opened


def test_a_replica_may_do_all_that_a_replica_does(
    replica: RedisWeightRegistry, aligner: RedisWeightRegistry
) -> None:
    assert replica.rollout() == Rollout(3, 1, 2, frozenset("a"))
    assert replica.newest_version() == 2
    assert replica.fetch(2).blob == blob_of(2)
    assert replica.fetch_training_state(1) == b"moments"
    assert states(replica) == {1: "stable", 2: "canary"}
    assert [event.event for event in replica.events()] == ["published", "published", "canary"]
    replica.acknowledge("a", 2)
    assert replica.acknowledgements() == {"a": 2}
    assert replica.wait(PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(replica.wait, PATIENCE_S)
        decide(aligner, "promote", 2)
        assert waiting.result(PATIENCE_S)
    assert replica.rollout().stable == 2


def test_a_replica_changes_nothing(replica: RedisWeightRegistry) -> None:
    attempts: list[Callable[[], object]] = [
        replica.acquire_epoch,
        lambda: publish(replica, 3),
        lambda: decide(replica, "revoke", 2),
        lambda: decide(replica, "rollback", 0),
    ]
    for attempt in attempts:
        with pytest.raises(
            RegistryError, match=r"denied the command .* user in registry\.replica_url"
        ) as caught:
            attempt()
        one_line(caught.value, "acilper")
    assert replica.rollout() == Rollout(3, 1, 2, frozenset("a"))


@pytest.mark.parametrize(
    "command",
    [
        "EVAL 'return 1' 0",
        "EVALSHA abc 0",
        "EVAL_RO 'return 1' 0",
        "SCRIPT LOAD 'return 1'",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "FCALL f 0",
        "DEL evospec:m:1",
        "UNLINK evospec:w:1",
        "SET evospec:w:1 x",
        "SET evospec:acknowledgements x",
        "HSET evospec:alive:a field 1",
        "DEL evospec:alive:a",
        "SETRANGE evospec:w:1 0 x",
        "HSET evospec:rollout stable 9",
        "HSET evospec:m:1 state revoked",
        "HDEL evospec:acknowledgements a",
        "DEL evospec:acknowledgements",
        "EXPIRE evospec:w:1 1",
        "RENAME evospec:w:1 evospec:w:9",
        "COPY evospec:w:1 evospec:w:9",
        "SORT evospec:versions STORE evospec:w:9",
        "XADD evospec:events * event published",
        "PUBLISH evospec:wakeup 1",
        "SUBSCRIBE other",
        "PSUBSCRIBE *",
        "HSET other field 1",
        "GET other",
        "STRLEN other",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG GET *",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "ACL SETUSER replica +@all",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "MONITOR",
        "INFO",
        "SAVE",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "MIGRATE 127.0.0.1 1 evospec:w:1 0 1",
        "DUMP evospec:w:1",
        "OBJECT FREQ evospec:w:1",
        "MODULE LIST",
        "SWAPDB 0 1",
    ],
)
def test_a_replica_is_refused(command: str, guarded: Server, replica: RedisWeightRegistry) -> None:
    with closing(Redis.from_url(url_of(guarded, "replica"))) as client, pytest.raises(NoPermissionError):
        client.execute_command(*shlex.split(command))


@pytest.mark.parametrize("user", ["aligner", "operator"])
def test_publishers_and_deciders_may_run_both_scripts(user: str, guarded: Server, admin: Redis) -> None:
    with closing(RedisWeightRegistry(url_of(guarded, user), keep_versions=3)) as registry:
        epoch = registry.acquire_epoch()
        registry.acknowledge("here", 1)
        registry.acknowledge("gone", 1)
        admin.delete("evospec:alive:gone")
        for version in range(1, 7):
            publish(registry, version, epoch, state="candidate", training_state=b"moments")
            decide(registry, "canary", version, "a")
            decide(registry, "revoke" if version % 3 else "promote", version)
        decide(registry, "rollback", 0)
        assert registry.wait(PATIENCE_S)
        assert registry.acknowledgements() == {"here": 1}
        assert set(states(registry).values()) == {"revoked"}
        assert len(registry.events()) == 19
        assert registry.fetch_training_state(6) == b"moments"
    denied = {text(cast("bytes", entry["object"])) for entry in admin.acl_log()}
    assert denied <= {"client|setinfo", "client|maint_notifications"}  # the client library's own


@pytest.mark.parametrize("user", ["aligner", "operator"])
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "CONFIG GET *", "EVAL 'return 1' 0", "SET other 1", "DEL evospec:m:1", "ACL LIST"],
)
def test_publishers_and_deciders_rule_the_namespace_only(user: str, command: str, guarded: Server) -> None:
    with closing(Redis.from_url(url_of(guarded, user))) as client, pytest.raises(NoPermissionError):
        client.execute_command(*shlex.split(command))


def test_a_script_reaches_no_further_than_its_user(guarded: Server, admin: Redis) -> None:
    with closing(Redis.from_url(url_of(guarded, "aligner"))) as client:
        for lua in ("return redis.call('FLUSHALL')", "return redis.call('SET', 'other', '1')"):
            with pytest.raises(ResponseError, match=r"ACL failure in script|executing the script can't"):
                client.register_script(lua)()
    assert admin.exists("other") == 0


def test_a_right_that_a_script_lacks_is_named(
    guarded: Server, admin: Redis, aligner: RedisWeightRegistry
) -> None:
    admin.acl_setuser("half", enabled=True, passwords=["+flah"], keys=["*"], commands=["+@all", "-xadd"])
    with closing(RedisWeightRegistry(url_of(guarded, "half"))) as registry:
        with pytest.raises(RegistryError, match="denied the command") as caught:
            decide(registry, "promote", 2)
        one_line(caught.value, "flah")
        assert registry.rollout().stable == 1
    admin.acl_deluser("half")


def test_nobody_gets_in_without_a_password(guarded: Server) -> None:
    for login in ("", "default:@", "replica:wrong@", ":replica@"):
        with pytest.raises(RegistryError, match=r"refused the credentials|not reachable") as caught:
            open_registry(RegistryConfig(url=f"redis://{login}{HOST}:{guarded.port}/0"))
        one_line(caught.value, "wrong")


def test_another_namespace_is_named(guarded: Server, config: RegistryConfig) -> None:
    other = config.model_copy(update={"namespace": "other"})
    with closing(open_registry(other)) as registry:
        with pytest.raises(
            RegistryError, match=r"denied the command .*; extend the ACL of the user"
        ) as caught:
            registry.rollout()
        one_line(caught.value)
        assert not registry.wait(0.05)  # the channel is not its own either: polling goes on


def test_placeholders_keep_a_server_from_starting(tmp_path: Path) -> None:
    for user in USERS:
        assert f"#{user.upper()}_SHA256" in ACL.read_text()
    port = free_port()
    settings = [*plain_settings(port), f"aclfile {ACL}"]
    with (
        pytest.raises(pytest.fail.Exception, match="password hash must be exactly 64"),
        Server(binary_of("valkey"), tmp_path / "server", port, settings),
    ):
        pass


def test_the_replicas_factory_pickles(config: RegistryConfig, aligner: RedisWeightRegistry) -> None:
    factory = functools.partial(open_replica_registry, config)
    with closing(ForkingPickler.loads(ForkingPickler.dumps(factory))()) as registry:
        assert registry.rollout().stable == 1
        with pytest.raises(RegistryError, match="denied"):
            decide(registry, "revoke", 2)


def test_without_a_replica_url_replicas_use_the_other(
    config: RegistryConfig, aligner: RedisWeightRegistry
) -> None:
    with closing(open_replica_registry(config.model_copy(update={"replica_url": None}))) as registry:
        decide(registry, "revoke", 2)
    with pytest.raises(RegistryError, match=r"registry\.url is not set"):
        open_replica_registry(RegistryConfig())
    with pytest.raises(RegistryError, match=r"registry\.replica_url is not a Redis URL"):
        open_replica_registry(RegistryConfig(url=config.url, replica_url="http://host"))
