"""Decisions taken twice, at once, without an answer, or on a server in trouble."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import DecisionRefusedError, RegistryError, StalePublisherError
from evospec.wire import DecisionKind, Rollout
from services.registry import RedisWeightRegistry, open_registry
from tests.integration.registry_kit import (
    PATIENCE_S,
    decide,
    eventually,
    publish,
    states,
)

KINDS: tuple[DecisionKind, ...] = ("canary", "promote", "revoke", "rollback")

# --- decided twice, at once, or without an answer ---------------------------------------------


def test_what_holds_already_is_not_decided_again(tried: RedisWeightRegistry) -> None:
    steps: list[tuple[DecisionKind, int, tuple[str, ...]]] = [
        ("canary", 3, ("a", "b")),
        ("promote", 3, ()),
        ("revoke", 3, ()),
        ("rollback", 1, ()),
        ("rollback", 0, ()),
    ]
    for kind, version, replicas in steps:
        decide(tried, kind, version, *replicas)
        after = (tried.rollout(), tried.events(), states(tried))
        decide(tried, kind, version, *reversed(replicas))
        assert (tried.rollout(), tried.events(), states(tried)) == after


def test_a_decision_whose_reply_was_lost_is_not_refused(
    tried: RedisWeightRegistry, registry_config: RegistryConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends a script again when its connection dies; another one decides in between."""
    script = tried._decide
    with closing(open_registry(registry_config)) as other:

        def twice(keys: list[str], args: list[str | int]) -> object:
            script(keys=keys, args=args)
            decide(other, "rollback", 0)
            return script(keys=keys, args=args)

        monkeypatch.setattr(tried, "_decide", twice)
        decide(tried, "promote", 3)  # the second time, version 3 is revoked
    assert [event.event for event in tried.events(2)] == ["promote", "rollback"]
    assert tried.rollout().stable == 0


def test_a_connection_that_died_is_made_again(tried: RedisWeightRegistry, raw: Redis) -> None:
    raw.client_kill_filter(skipme=True)
    decide(tried, "promote", 3)
    raw.client_kill_filter(skipme=True)
    publish(tried, 4, state="candidate")
    assert tried.rollout() == Rollout(serial=6, stable=3, candidate=4)


def test_deciders_at_once_agree(registry_config: RegistryConfig) -> None:
    """Half promote the candidate, half revoke it: the history is one that happens one by one."""
    rounds, deciders = 10, 6
    start = threading.Barrier(deciders)
    refused: Counter[int] = Counter()

    def race(mine: int) -> None:
        with closing(open_registry(registry_config)) as registry:
            for version in range(1, rounds + 1):
                if mine == 0:
                    publish(registry, version, state="candidate")
                start.wait(PATIENCE_S)
                try:
                    decide(registry, "promote" if mine % 2 else "revoke", version)
                except DecisionRefusedError:
                    refused[version] += 1
                start.wait(PATIENCE_S)

    with ThreadPoolExecutor(deciders) as pool:
        for racing in [pool.submit(race, mine) for mine in range(deciders)]:
            racing.result()
    with closing(open_registry(registry_config)) as registry:
        assert registry.rollout().candidate == 0
        assert registry.rollout().stable == 0  # whoever came first, the revocations came at all
        for version in range(1, rounds + 1):
            kinds = [event.event for event in registry.events(1000) if event.version == version]
            assert kinds in (["published", "promote", "revoke"], ["published", "revoke"])
            assert (refused[version] > 0) >= (kinds == ["published", "revoke"])
        assert registry.rollout().serial == len(registry.events(1000))


def test_a_rollout_is_read_in_one_step(registry_config: RegistryConfig) -> None:
    """A reader never sees half of a change: a canary without its candidate, say."""
    done = threading.Event()

    def change() -> None:
        with closing(open_registry(registry_config)) as registry:
            for version in range(1, 60):
                publish(registry, version, state="candidate")
                decide(registry, "canary", version, f"replica {version}")
                decide(registry, "promote" if version % 2 else "revoke", version)
        done.set()

    seen: list[Rollout] = []
    with closing(open_registry(registry_config)) as reader, ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        while not done.is_set() and not changing.done():
            seen.append(reader.rollout())
        changing.result()
    assert [rollout.serial for rollout in seen] == sorted(rollout.serial for rollout in seen)
    for rollout in seen:
        version, step = divmod(rollout.serial - 1, 3)
        waits = rollout.serial > 0 and step < 2
        assert rollout.candidate == (version + 1 if waits else 0)
        assert rollout.canary == ({f"replica {version + 1}"} if waits and step == 1 else set())


def test_two_aligners_fight_and_one_wins(registry_config: RegistryConfig) -> None:
    """Both publish candidates as fast as they can; the one with the older epoch is shut out."""
    with closing(open_registry(registry_config)) as first, closing(open_registry(registry_config)) as second:
        old = first.acquire_epoch()
        publish(first, 1, old, "first", state="candidate")
        new = second.acquire_epoch()
        with pytest.raises(StalePublisherError, match=f"epoch {new}"):
            publish(first, 2, old, "first", state="candidate")
        with pytest.raises(DecisionRefusedError, match="being tried"):
            publish(second, 2, new, "second", state="candidate")
        decide(second, "revoke", 1)
        publish(second, 2, new, "second", state="candidate")
        with pytest.raises(StalePublisherError):
            publish(first, 3, old, "first")
        assert second.rollout().candidate == 2


# --- a server in trouble ----------------------------------------------------------------------


def test_a_flush_leaves_an_empty_registry(tried: RedisWeightRegistry, raw: Redis) -> None:
    raw.flushall()
    assert tried.rollout() == Rollout()
    assert tried.rollout().wanted("a") == 0
    with pytest.raises(DecisionRefusedError, match="stable is the base, candidate none, kept are none"):
        decide(tried, "promote", 3)
    publish(tried, 9, state="candidate")
    assert tried.rollout() == Rollout(serial=1, candidate=9)


def test_a_full_server_still_revokes(tried: RedisWeightRegistry, raw: Redis) -> None:
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(RegistryError, match="out of memory"):
            publish(tried, 4)
        decide(tried, "revoke", 3)
    finally:
        raw.config_set("maxmemory", 0)
    assert tried.rollout() == Rollout(serial=5, stable=2)


def test_scripts_survive_a_script_flush(tried: RedisWeightRegistry, raw: Redis) -> None:
    raw.script_flush()
    decide(tried, "promote", 3)
    assert eventually(lambda: tried.rollout().stable == 3)


@pytest.mark.parametrize("kind", KINDS)
def test_large_numbers_keep_their_digits(kind: DecisionKind, registry: RedisWeightRegistry) -> None:
    """Lua would write 9007199254740990 as 9.007199254741e+15."""
    low, high = 2**53 - 2, 2**53 - 1
    publish(registry, low)
    publish(registry, high, state="candidate")
    decide(registry, "canary", high, "a")
    wanted = {"canary": (low, high), "promote": (high, 0), "revoke": (low, 0), "rollback": (0, 0)}[kind]
    decide(registry, kind, 0 if kind == "rollback" else high, "a")
    assert (registry.rollout().stable, registry.rollout().candidate) == wanted
    assert registry.newest_version() == high
