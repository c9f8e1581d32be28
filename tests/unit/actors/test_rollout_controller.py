"""The controller's thread between a registry and replicas that fail in their own ways."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from actors.handles import NoReplicaError
from actors.rollout_controller import RolloutController, RolloutStatus
from actors.status import ReplicaStatus
from evospec.align.arm import ArmSums
from evospec.config import Config, RolloutConfig, ServeConfig
from evospec.errors import DecisionRefusedError, RegistryError
from evospec.wire import Decision
from tests.unit.actors.canary_kit import BAD_REQUEST, REQUEST, Replica
from tests.unit.actors.fakes import FakeRegistry, wait_until

ROLLOUT = RolloutConfig(min_requests=8, soak_s=0, max_minutes=1000, poll_s=0.01)


@dataclass
class Fleet:
    """Replicas that follow the registry and serve one request a look; useless versions serve it badly.

    `meanwhile` happens between their answer and what the controller makes of it.
    """

    registry: FakeRegistry
    replicas: list[Replica] = field(default_factory=list)
    useless: set[int] = field(default_factory=set)
    away: bool = False
    asked: int = 0
    meanwhile: Callable[[], None] = lambda: None

    def statuses(self) -> list[ReplicaStatus]:
        self.asked += 1
        if self.away:
            raise NoReplicaError("no replica answers")
        for one in self.replicas:
            one.version = self.registry.now.wanted(one.name)
            one.serve(1, BAD_REQUEST if one.version in self.useless else REQUEST)
        answer = [one.status() for one in self.replicas]
        self.meanwhile()
        return answer


class RefusingRegistry(FakeRegistry):
    """Refuses what an operator has overtaken, and to go on with a corrupt version, as the real one does."""

    def decide(self, decision: Decision) -> None:
        if decision.version != self.now.candidate:
            raise DecisionRefusedError(f"cannot {decision.kind} version {decision.version}")
        if decision.version in self.corrupt and decision.kind != "revoke":
            raise DecisionRefusedError("its weights are gone")
        super().decide(decision)
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise RegistryError("connection lost")


@pytest.fixture
def registry() -> FakeRegistry:
    registry = RefusingRegistry()
    registry.put(1)
    return registry


@pytest.fixture
def fleet(registry: FakeRegistry) -> Fleet:
    return Fleet(registry, [Replica(f"r{number}") for number in range(4)])


Start = Callable[..., RolloutController]


@pytest.fixture
def start(registry: FakeRegistry, fleet: Fleet) -> Iterator[Start]:
    started: list[RolloutController] = []

    def build(
        rollout: RolloutConfig = ROLLOUT, crashed: Callable[[], None] = lambda: None
    ) -> RolloutController:
        config = Config(rollout=rollout, serve=ServeConfig(replicas=len(fleet.replicas)))
        started.append(RolloutController(config, lambda: registry, fleet.statuses, crashed=crashed))
        return started[-1]

    yield build
    for controller in started:
        controller.close()


def kinds(registry: FakeRegistry) -> list[str]:
    return [decision.kind for decision in registry.decisions]


def settled(controller: RolloutController) -> RolloutStatus:
    wait_until(lambda: controller.status().phase == "idle" and controller.status().counts.looks > 0)
    return controller.status()


def test_a_good_version_goes_through_its_canary_to_all(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    controller = start()
    registry.try_out(2)
    wait_until(lambda: registry.current == 2)
    wait_until(lambda: controller.status().counts.promoted == 1)
    assert kinds(registry) == ["canary", "promote"]
    assert len(registry.decisions[0].replicas) == 1
    assert settled(controller).verdict.startswith("version 2: acceptance length of one-token drafts 1.50 ag")
    assert controller.status().stable == 2


def test_a_useless_version_never_leaves_its_canary(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    fleet.useless = {2}
    controller = start()
    registry.try_out(2)
    wait_until(lambda: controller.status().counts.revoked == 1)
    assert kinds(registry) == ["canary", "revoke"]
    assert registry.now.stable == 1
    assert sum(2 in one.arms for one in fleet.replicas) == 1
    registry.try_out(3)  # and the next one gets its chance
    wait_until(lambda: registry.current == 3)


def test_what_goes_on_in_a_canary_can_be_seen(start: Start, registry: FakeRegistry, fleet: Fleet) -> None:
    controller = start(ROLLOUT.model_copy(update={"soak_s": 1e6}))
    assert controller.status().phase == "idle"
    registry.try_out(2)
    wait_until(lambda: controller.status().canary_arm.requests >= 3)
    status = controller.status()
    assert (status.phase, status.stable, status.candidate) == ("canary", 1, 2)
    assert set(status.canary) == registry.now.canary
    assert status.control_arm.requests == 3 * status.canary_arm.requests
    assert " of 1e+06 s over: " in status.verdict or "fewer than 8 requests" in status.verdict


def test_replicas_are_asked_only_while_there_is_a_candidate(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    controller = start()
    wait_until(lambda: controller.status().counts.looks >= 5)
    assert fleet.asked == 0


def test_an_operator_is_faster(start: Start, registry: FakeRegistry, fleet: Fleet) -> None:
    controller = start(ROLLOUT.model_copy(update={"soak_s": 1e6}))
    registry.try_out(2)
    wait_until(lambda: controller.status().phase == "canary")
    registry.decide(Decision(kind="revoke", version=2, by="operator"))
    assert settled(controller).candidate == 0
    registry.try_out(3)
    wait_until(lambda: controller.status().phase == "canary")
    assert controller.status().candidate == 3
    registry.decide(Decision(kind="promote", version=3, by="operator"))
    assert settled(controller).stable == 3
    assert (controller.status().counts.promoted, controller.status().counts.revoked) == (0, 0)


def test_an_operator_decides_while_the_controller_looks(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    """The decision that follows from the look is refused, which is no failure."""
    fleet.meanwhile = lambda: registry.decide(Decision(kind="revoke", version=2, by="operator"))
    controller = start()
    registry.try_out(2)
    wait_until(lambda: controller.status().counts.decisions_refused == 1)
    assert settled(controller).counts.registry_failures == 0
    assert kinds(registry) == ["revoke"]


def test_a_registry_that_is_away_costs_time_only(
    start: Start, registry: FakeRegistry, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    registry.down = True
    with caplog.at_level(logging.WARNING):
        controller = start()
        wait_until(lambda: controller.status().counts.registry_failures >= 3)
    assert len([one for one in caplog.records if "until the registry can be reached" in one.message]) == 1
    registry.down = False
    registry.try_out(2)
    wait_until(lambda: registry.current == 2)


def test_a_registry_that_can_not_even_be_opened_is_tried_again(fleet: Fleet, registry: FakeRegistry) -> None:
    attempts: list[int] = []

    def open_registry() -> FakeRegistry:
        attempts.append(1)
        if len(attempts) < 4:
            raise RegistryError("not there yet")
        return registry

    registry.try_out(2)
    config = Config(rollout=ROLLOUT, serve=ServeConfig(replicas=4))
    controller = RolloutController(config, open_registry, fleet.statuses)
    wait_until(lambda: registry.current == 2)
    controller.close()
    assert len(attempts) == 4
    assert registry.closed


def test_replicas_that_are_away_are_waited_for(
    start: Start, registry: FakeRegistry, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.away = True
    registry.try_out(2)
    with caplog.at_level(logging.WARNING):
        controller = start()
        wait_until(lambda: controller.status().counts.replica_failures >= 3)
    assert len([one for one in caplog.records if "until the replicas can be reached" in one.message]) == 1
    assert controller.status().phase == "waiting"
    assert registry.decisions == []
    fleet.away = False
    wait_until(lambda: registry.current == 2)


def test_a_decision_whose_answer_was_lost_is_seen_in_the_registry(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    registry.lose_next_answer = True
    controller = start()
    registry.try_out(2)
    wait_until(lambda: controller.status().counts.promoted == 1)
    assert not registry.lose_next_answer
    assert kinds(registry) == ["canary", "promote"]


def test_a_controller_that_takes_over_half_way_goes_on(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    registry.try_out(2, "r3")
    controller = start()
    wait_until(lambda: controller.status().counts.promoted == 1)
    assert kinds(registry) == ["promote"]


def test_a_version_that_can_not_be_promoted_is_revoked(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    registry.corrupt = {2}
    controller = start()
    registry.try_out(2)
    wait_until(lambda: controller.status().counts.revoked == 1)
    assert controller.status().counts.decisions_refused == 3
    assert "does not let it go on" in controller.status().verdict


def test_a_single_replica_gets_each_version_at_once(
    start: Start, registry: FakeRegistry, fleet: Fleet
) -> None:
    del fleet.replicas[1:]
    start()
    registry.try_out(2)
    wait_until(lambda: registry.current == 2)
    assert kinds(registry) == ["promote"]


def test_a_bug_ends_the_process_and_not_just_the_thread(
    start: Start, registry: FakeRegistry, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    fleet.meanwhile = bug
    registry.try_out(2)
    crashed = threading.Event()
    start(crashed=crashed.set)
    wait_until(crashed.is_set)
    assert "the rollout controller crashed" in caplog.text


def test_an_empty_trial_shows_empty_arms(start: Start) -> None:
    assert settled(start()).canary_arm == ArmSums()
