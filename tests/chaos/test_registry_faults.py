"""The weight registry is away, slow, or has lost what it knew: serving does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from evospec.errors import RegistryError
from services.registry import open_registry
from tests.chaos.kit.patience import PATIENCE_S, wait_for
from tests.chaos.kit.processes import actor_process
from tests.chaos.kit.rig import Rig
from tests.chaos.kit.versions import HandPublisher

PART = "Weight registry (Redis or Valkey)"
SOME = 12  # requests served during a fault


def test_the_registry_is_killed_and_comes_back(rig: Rig) -> None:
    with rig.scenario(PART, "killed, restarted with its data", harmless=True) as scenario:
        rig.server.kill()
        scenario.load.served(SOME)
        rig.server.restart()
        scenario.start_clock()
        with rig.publisher() as publisher:
            version = publisher.publish(rig.harmless_version(1))
        wait_for(lambda: rig.run(version))
        scenario.recovered("from its return until a version published then runs on all replicas")


@pytest.mark.long
def test_the_registry_is_slow(rig: Rig) -> None:
    with rig.scenario(PART, "answers 1.5 s late", harmless=True) as scenario, rig.publisher() as publisher:
        rig.server.proxy.delay_s = 0.75  # there, and back
        scenario.load.served(SOME)
        scenario.start_clock()
        version = publisher.publish(rig.harmless_version(2))
        wait_for(lambda: rig.run(version))
        scenario.recovered("from a publication until it runs on all replicas")


@pytest.mark.long
def test_the_registry_hangs(rig: Rig) -> None:
    title = "accepts connections and never answers"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        rig.server.proxy.stall()
        version = publisher.publish(rig.harmless_version(3))
        scenario.load.served(SOME)
        rig.server.proxy.restore()
        scenario.start_clock()
        wait_for(lambda: rig.run(version))
        scenario.recovered("from its return until a version published meanwhile runs on all replicas")


def test_the_registry_is_flushed(rig: Rig) -> None:
    title = "flushed, with no aligner at work"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        before = publisher.publish(rig.harmless_version(4))
        wait_for(lambda: rig.run(before))
        with closing(rig.server.client()) as client:
            client.flushall()
        scenario.load.served(SOME)
        # Acknowledged anew: each replica has seen that the registry is empty, and kept its version.
        wait_for(lambda: set(publisher.registry.acknowledgements().values()) == {before})
        wait_for(lambda: rig.run(before))
        scenario.start_clock()
        version = publisher.publish(rig.harmless_version(5))
        assert version == before + 1
        wait_for(lambda: rig.run(version))
        scenario.recovered("from the next publication until it runs on all replicas")


@pytest.mark.long
def test_the_registry_is_flushed_under_a_working_aligner(learning_rig: Rig) -> None:
    rig = learning_rig
    title = "flushed, with the aligner at work"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.registry() as registry:
        before = rig.promote_next(registry)
        with closing(rig.server.client()) as client:
            client.flushall()
        scenario.start_clock()
        wait_for(lambda: registry.rollout().stable > before)
        scenario.recovered("until the aligner has published the stable version again")
        rig.promote_next(registry)  # it goes on learning


def test_the_registry_dies_in_the_middle_of_a_publication(rig: Rig) -> None:
    title = "killed while a version is being sent to it"
    with rig.scenario(PART, title, harmless=True) as scenario, through_proxy(rig) as publisher:
        before = publisher.registry.rollout()
        rig.server.proxy.bytes_per_s = 50_000.0
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(publisher.publish, rig.harmless_version(6, rank=64))
            wait_for(lambda: rig.server.receives(10_000))
            rig.server.kill()
            with pytest.raises(RegistryError):
                sending.result(PATIENCE_S)
        scenario.load.served(SOME)
        rig.server.proxy.restore()
        rig.server.restart()
        scenario.start_clock()
        assert publisher.registry.rollout() == before
        version = publisher.publish(rig.harmless_version(6, rank=64))
        wait_for(lambda: rig.run(version))
        scenario.recovered("from its return until the version, sent again, runs on all replicas")


@pytest.mark.long
def test_the_answer_to_a_publication_is_lost(rig: Rig) -> None:
    title = "connections cut between a publication and its answer"
    with rig.scenario(PART, title, harmless=True) as scenario, through_proxy(rig) as publisher:
        rig.server.proxy.delay_s = 0.5
        with rig.registry() as direct, ThreadPoolExecutor(1) as pool:
            before = direct.rollout().serial
            sending = pool.submit(publisher.publish, rig.harmless_version(7))
            wait_for(lambda: direct.rollout().serial > before)
            rig.server.proxy.cut()
            scenario.start_clock()
            version = sending.result(PATIENCE_S)  # asked again, it is found to be done
            assert [event.version for event in direct.events()].count(version) == 1
        wait_for(lambda: rig.run(version))
        scenario.recovered("from the cut until the version runs on all replicas")


@pytest.mark.long
def test_the_bytes_of_the_stable_version_are_deleted(rig: Rig) -> None:
    title = "bytes of the stable version deleted, then a replica killed"
    with rig.scenario(PART, title) as scenario, rig.publisher() as publisher:
        gone = publisher.publish(rig.harmless_version(8))
        wait_for(lambda: rig.run(gone))
        before = rig.names()
        with closing(rig.server.client()) as client:
            assert client.delete(f"{rig.cluster.config.registry.namespace}:w:{gone}") == 1
        actor_process(min(before)).kill()
        wait_for(lambda: rig.complete() and rig.names() != before)
        statuses = {status.replica: status for status in rig.replicas()}
        versions = {replica: status.engine.adapter_version for replica, status in statuses.items()}
        (fresh,) = versions.keys() - before
        assert statuses[fresh].weights.missing > 0
        assert statuses[fresh].weights.registry_failures == 0
        assert versions.pop(fresh) == 0  # it serves with the base
        assert set(versions.values()) == {gone}
        scenario.load.served(SOME)
        scenario.start_clock()
        version = publisher.publish(rig.harmless_version(9))
        wait_for(lambda: rig.run(version))
        scenario.recovered("from the next publication until it runs on all replicas")


@pytest.mark.parametrize(
    ("name", "created"), [("1970", 0.0), pytest.param("2100", 4.1e9, marks=pytest.mark.long)]
)
def test_the_publishers_clock_is_wrong(rig: Rig, name: str, created: float) -> None:
    title = f"a publisher whose clock says {name}"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        scenario.start_clock()
        version = publisher.publish(
            rig.harmless_version(int(created)),
            change=lambda manifest: manifest.model_copy(update={"created": created}),
        )
        wait_for(lambda: rig.run(version))
        scenario.recovered("from a publication until it runs on all replicas")


@pytest.mark.long
def test_the_network_is_slow(rig: Rig) -> None:
    title = "network to registry and token index: 200 ms more each way, 200 kB/s"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        for proxy in (rig.server.proxy, rig.qdrant_proxy):
            proxy.delay_s, proxy.bytes_per_s = 0.2, 200_000.0
        scenario.load.served(SOME)
        scenario.start_clock()
        version = publisher.publish(rig.harmless_version(10, rank=64))
        wait_for(lambda: rig.run(version))
        scenario.recovered("from a publication until it runs on all replicas")


@contextmanager
def through_proxy(rig: Rig) -> Iterator[HandPublisher]:
    """A publisher that reaches the registry as the cluster does."""
    with closing(open_registry(rig.cluster.config.registry)) as registry:
        yield HandPublisher(registry, rig.replicas()[0].fingerprints)
