"""The weight registry on real servers: embedded Valkey, and Debian's Redis where it is installed."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.reduction import ForkingPickler

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import RegistryError, StalePublisherError, VersionMissingError
from evospec.ports import ACKNOWLEDGED_FOR_S
from evospec.wire import Rollout
from services import registry as registry_module
from services.registry import RedisWeightRegistry, open_registry
from services.registry_contents import KeptVersions
from tests.integration.registry_kit import (
    PATIENCE_S,
    blob_of,
    contents,
    eventually,
    manifest_of,
    publish,
    text,
)

# --- publishing and fetching ------------------------------------------------------------------


def test_nothing_is_published_at_first(registry: RedisWeightRegistry) -> None:
    assert registry.rollout() == Rollout()
    assert (registry.newest_version(), registry.kept_versions().states, registry.events()) == (0, {}, [])
    assert registry.fetch_training_state(1) is None
    assert registry.acknowledgements() == {}
    with pytest.raises(RegistryError, match="version 1 is not in"):
        registry.fetch(1)


def test_publish_then_fetch(registry: RedisWeightRegistry, raw: Redis) -> None:
    publish(registry, 1, epoch=registry.acquire_epoch())
    fetched = registry.fetch(registry.rollout().stable)
    assert fetched.blob == blob_of(1)
    assert fetched.manifest == manifest_of(1, blob_of(1))
    assert raw.get("test:w:1") == blob_of(1)
    assert raw.ttl("test:w:1") == -1  # the staged blob's expiry is gone
    assert not raw.keys("test:staged:*")
    assert registry.rollout() == Rollout(serial=1, stable=1)
    assert registry.newest_version() == 1


def test_versions_may_skip_but_not_repeat_or_fall(registry: RedisWeightRegistry) -> None:
    publish(registry, 5)
    for stale in (5, 4, 1):
        with pytest.raises(StalePublisherError, match="at version 5, epoch 1"):
            publish(registry, stale, publisher="other")
    assert registry.fetch(5).blob == blob_of(5)
    publish(registry, 9)
    assert registry.rollout().stable == 9


def test_refused_publication_leaves_no_trace(registry: RedisWeightRegistry, raw: Redis) -> None:
    publish(registry, 2)
    before = contents(raw)
    with pytest.raises(StalePublisherError):
        publish(registry, 1)
    assert contents(raw) == before


def test_older_epoch_is_fenced_by_a_newer_one(registry_config: RegistryConfig) -> None:
    with closing(open_registry(registry_config)) as old, closing(open_registry(registry_config)) as new:
        old_epoch = old.acquire_epoch()
        publish(old, 1, old_epoch)
        new_epoch = new.acquire_epoch()
        assert new_epoch > old_epoch
        # Acquiring is enough: the newer publisher has published nothing yet.
        with pytest.raises(StalePublisherError, match=f"epoch {new_epoch}"):
            publish(old, 2, old_epoch)
        publish(new, 2, new_epoch)
        with pytest.raises(StalePublisherError):
            publish(old, 3, old_epoch)
        assert new.fetch(new.rollout().stable).manifest.epoch == new_epoch


def test_epochs_are_unique_among_threads(registry: RedisWeightRegistry) -> None:
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda _: registry.acquire_epoch(), range(64)))
    assert sorted(epochs) == list(range(1, 65))


def test_publisher_goes_on_after_a_flush(registry: RedisWeightRegistry, raw: Redis) -> None:
    for _ in range(3):
        epoch = registry.acquire_epoch()
    publish(registry, 7, epoch)
    raw.flushall()
    assert registry.rollout().stable == 0
    publish(registry, 8, epoch)
    assert registry.fetch(registry.rollout().stable).manifest.version == 8
    assert registry.acquire_epoch() > epoch


def test_old_versions_are_trimmed_and_never_the_current(registry: RedisWeightRegistry, raw: Redis) -> None:
    for version in (1, 2, 3, 10, 11):
        publish(registry, version)
        assert registry.fetch(version).manifest.version == version
    assert {text(key) for key in raw.keys("test:[wm]:*")} == {
        f"test:{kind}:{version}" for kind in "wm" for version in (3, 10, 11)
    }
    with pytest.raises(VersionMissingError, match="trimmed"):
        registry.fetch(2)


def test_training_states_are_kept_beside_their_versions(registry: RedisWeightRegistry, raw: Redis) -> None:
    for version in (1, 2, 3):
        publish(registry, version, training_state=f"moments of {version}".encode())
    publish(registry, 4)
    assert registry.fetch_training_state(3) == b"moments of 3"
    assert registry.fetch_training_state(4) is None
    assert registry.fetch_training_state(1) is None  # trimmed with its version
    assert raw.ttl("test:t:3") == -1
    assert not raw.keys("test:staged:*")


def test_what_is_kept_is_listed_whatever_is_damaged(registry: RedisWeightRegistry, raw: Redis) -> None:
    assert registry.kept_versions() == KeptVersions({}, {}, {})
    for version in (1, 2, 9, 10):
        publish(registry, version)
    kept = registry.kept_versions()
    assert list(kept.manifests) == list(kept.states) == [2, 9, 10]
    raw.hset("test:m:9", "manifest", "{}")
    kept = registry.kept_versions()
    assert kept.damaged == {9: "version 9: manifest does not match its digest"}
    assert list(kept.manifests) == [2, 10]
    assert list(kept.states) == [2, 9, 10]


def test_event_stream_is_capped(
    registry_config: RegistryConfig, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_EVENTS", 100)
    with closing(open_registry(registry_config)) as registry:
        for version in range(1, 401):
            publish(registry, version)
        # "~" lets the server keep part of a node more (100 entries by default).
        kept = [event.version for event in registry.events(1000)]
    assert 100 <= len(kept) == raw.xlen("test:events") <= 300
    assert kept == list(range(401 - len(kept), 401))


# --- atomicity --------------------------------------------------------------------------------


def test_concurrent_publishers_have_one_winner_per_version(registry_config: RegistryConfig) -> None:
    """Many publishers race through the same versions; a reader checks the pointer meanwhile."""
    publishers, versions = 8, 12
    won: Counter[int] = Counter()
    winner: dict[int, str] = {}
    seen: list[int] = []
    start, done = threading.Barrier(publishers + 1), threading.Event()
    roomy = registry_config.model_copy(update={"keep_versions": versions})

    def race(name: str) -> None:
        with closing(open_registry(roomy)) as registry:
            start.wait(PATIENCE_S)
            for version in range(1, versions + 1):
                try:
                    publish(registry, version, publisher=name)
                except StalePublisherError:
                    continue
                won[version] += 1
                winner[version] = name

    def watch() -> None:
        with closing(open_registry(registry_config)) as registry:
            start.wait(PATIENCE_S)
            while not done.is_set():
                seen.append(registry.rollout().stable)
                if seen[-1]:
                    registry.fetch(seen[-1])  # the pointer never names what is not there

    with ThreadPoolExecutor(publishers + 1) as pool:
        watching = pool.submit(watch)
        for racing in [pool.submit(race, f"publisher {number}") for number in range(publishers)]:
            racing.result()
        done.set()
        watching.result()
    assert seen == sorted(seen)
    assert won[versions] == 1  # the last version can't be skipped: nothing is above it
    assert set(won.values()) == {1}
    with closing(open_registry(registry_config)) as registry:
        assert registry.rollout().stable == versions
        for version, name in winner.items():
            assert registry.fetch(version).blob == blob_of(version, name)


def test_identical_publications_have_one_winner(registry_config: RegistryConfig) -> None:
    start = threading.Barrier(8)

    def race(_: int) -> bool:
        with closing(open_registry(registry_config)) as registry:
            start.wait(PATIENCE_S)
            try:
                publish(registry, 1)
            except StalePublisherError:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1


def test_a_publication_whose_reply_was_lost_is_not_stale(
    registry: RedisWeightRegistry, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends a script again when its connection dies: the second run must agree."""
    script = registry._publish

    def twice(keys: list[str], args: list[str | int]) -> object:
        first = script(keys=keys, args=args)
        again = script(keys=keys, args=args)
        assert again == first
        return again

    monkeypatch.setattr(registry, "_publish", twice)
    publish(registry, 1, training_state=b"moments")
    publish(registry, 2, state="candidate")  # nor is it another that waits
    assert registry.rollout() == Rollout(serial=2, stable=1, candidate=2)
    assert registry.fetch_training_state(1) == b"moments"
    assert raw.xlen("test:events") == 2


@pytest.mark.parametrize("which", ["*[^t]", "*:t"])
def test_staged_bytes_that_vanished_move_nothing(
    which: str, registry: RedisWeightRegistry, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = registry._publish

    def after_expiry(keys: list[str], args: list[str | int]) -> object:
        raw.delete(*raw.keys(f"test:staged:{which}"))
        return script(keys=keys, args=args)

    monkeypatch.setattr(registry, "_publish", after_expiry)
    with pytest.raises(RegistryError, match="bytes vanished"):
        publish(registry, 1, training_state=b"moments")
    assert registry.rollout() == Rollout()
    assert not list(raw.scan_iter())


def test_the_script_survives_a_script_flush(registry: RedisWeightRegistry, raw: Redis) -> None:
    publish(registry, 1)
    raw.script_flush()
    publish(registry, 2)
    assert registry.rollout().stable == 2


# --- acknowledgements -------------------------------------------------------------------------


def test_acknowledgements(registry: RedisWeightRegistry) -> None:
    registry.acknowledge("replica-é", 1)
    registry.acknowledge("replica-b", 1)
    registry.acknowledge("replica-b", 2)
    assert registry.acknowledgements() == {"replica-é": 1, "replica-b": 2}


def test_an_acknowledgement_holds_for_a_while(registry: RedisWeightRegistry, raw: Redis) -> None:
    registry.acknowledge("alive", 1)
    assert 0 < raw.pttl("test:alive:alive") <= 1000 * ACKNOWLEDGED_FOR_S
    raw.pexpire("test:alive:alive", 1)
    assert eventually(lambda: registry.acknowledgements() == {})
    registry.acknowledge("alive", 1)
    assert registry.acknowledgements() == {"alive": 1}


def test_replicas_that_fell_silent_are_forgotten(registry: RedisWeightRegistry, raw: Redis) -> None:
    registry.acknowledge("gone", 1)
    registry.acknowledge("behind", 0)
    raw.delete("test:alive:gone")  # as it expires
    assert registry.acknowledgements() == {"behind": 0}
    for version in range(1, 5):  # keep_versions is 3
        publish(registry, version)
    assert registry.acknowledgements() == {"behind": 0}
    assert raw.hkeys("test:acknowledgements") == [b"behind"]


def test_factory_pickles(registry_config: RegistryConfig) -> None:
    factory = functools.partial(open_registry, registry_config)
    with closing(ForkingPickler.loads(ForkingPickler.dumps(factory))()) as registry:
        publish(registry, 1)
        assert registry.rollout().stable == 1
