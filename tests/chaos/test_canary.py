"""A version that is well-formed and useless: it costs a few replicas some speed, for some seconds."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from actors.names import ROLLOUT_CONTROLLER
from services.registry import RedisWeightRegistry
from tests.chaos.kit.patience import PATIENCE_S, wait_for
from tests.chaos.kit.processes import actor_process
from tests.chaos.kit.rig import Rig
from tests.chaos.kit.scenario import Scenario
from tests.chaos.kit.versions import USELESS, HandPublisher, random_adapter

PART = "Useless versions (well-formed, random weights)"
LOOK_S = 0.05
BAR_S = 60.0


@dataclass(slots=True)
class Watched:
    """Replicas that had acknowledged a version: ever, and at most at one time."""

    ever: set[str] = field(default_factory=set)
    most: int = 0
    most_canaries: int = 0

    def look(self, registry: RedisWeightRegistry, version: int) -> None:
        rollout = registry.rollout()
        running = {name for name, acked in registry.acknowledgements().items() if acked == version}
        self.ever |= running
        self.most = max(self.most, len(running))
        if rollout.candidate == version:
            self.most_canaries = max(self.most_canaries, len(rollout.canary))


@contextmanager
def watching(rig: Rig, version: int) -> Iterator[Watched]:
    watched = Watched()
    over = threading.Event()

    def watch() -> None:
        with rig.registry() as registry:
            while not over.wait(LOOK_S):
                watched.look(registry, version)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        over.set()
        thread.join(PATIENCE_S)


def publish_useless(rig: Rig, publisher: HandPublisher, seed: int) -> int:
    weights = random_adapter(rig.models.drafter(), USELESS, seed, fusion=True)
    return publisher.publish(weights, state="candidate")


def canaries_allowed(rig: Rig) -> int:
    return max(1, math.floor(rig.cluster.config.rollout.share * rig.cluster.config.serve.replicas))


def wait_for_revocation(rig: Rig, registry: RedisWeightRegistry, scenario: Scenario, version: int) -> None:
    """Notes how long it took, by the registry's clock, and what it had cost."""
    stable = registry.rollout().stable
    wait_for(lambda: registry.rollout().candidate == 0)
    times = {event.event: event.time_s for event in registry.events() if event.version == version}
    assert "promote" not in times
    took = times["revoke"] - times["canary"]
    scenario.took(took, "from the choice of its canary replicas until it is revoked", bar_s=BAR_S)
    wait_for(lambda: rig.run(stable))
    tally = scenario.load.tally()
    scenario.notes.append(f"{tally.versions[version]} of {tally.complete} requests ended under it")


def test_a_useless_version_is_revoked(rig: Rig) -> None:
    with rig.scenario(PART, "tried on a canary", harmless=True) as scenario, rig.publisher() as publisher:
        version = publish_useless(rig, publisher, 201)
        with watching(rig, version) as watched:
            wait_for_revocation(rig, publisher.registry, scenario, version)
        assert watched.most_canaries == 1
        assert len(watched.ever) <= canaries_allowed(rig)


@pytest.mark.long
def test_the_controller_is_killed_in_the_middle_of_a_canary(rig: Rig) -> None:
    title = "the rollout controller killed meanwhile"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        version = publish_useless(rig, publisher, 202)
        with watching(rig, version) as watched:
            wait_for(lambda: len(publisher.registry.rollout().canary) > 0)
            actor_process(ROLLOUT_CONTROLLER).kill()
            wait_for_revocation(rig, publisher.registry, scenario, version)
        assert watched.most <= canaries_allowed(rig)


@pytest.mark.long
def test_a_canary_replica_is_killed(rig: Rig) -> None:
    title = "its canary replica killed meanwhile"
    with rig.scenario(PART, title) as scenario, rig.publisher() as publisher:
        version = publish_useless(rig, publisher, 203)
        with watching(rig, version) as watched:
            wait_for(lambda: len(publisher.registry.rollout().canary) > 0)
            (canary,) = publisher.registry.rollout().canary
            actor_process(canary).kill()
            wait_for_revocation(rig, publisher.registry, scenario, version)
        assert watched.most_canaries <= canaries_allowed(rig)
