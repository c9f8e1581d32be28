"""One candidate's way, look by look, with replicas that come, go, refuse and die."""

from __future__ import annotations

import pytest

from actors.trial import ABSENT_S, MAX_DEATHS, MAX_REFUSALS, TAKE_UP_S, Trial
from evospec.align.arm import ArmSums
from evospec.config import RolloutConfig
from evospec.wire import Decision, Rollout
from tests.unit.actors.canary_kit import BAD_REQUEST, Replica

CONFIG = RolloutConfig(min_requests=8, soak_s=20, max_minutes=10)


class Scene:
    """A trial of version 2 against version 1, its replicas, and a registry that does what is decided."""

    def __init__(self, replicas: int, *, expected: int | None = None, config: RolloutConfig = CONFIG) -> None:
        self.replicas = [Replica(f"r{number}") for number in range(replicas)]
        self.rollout = Rollout(serial=5, stable=1, candidate=2)
        self.now_s = 1000.0
        self.trial = Trial(config, expected or replicas, self.rollout, began_s=self.now_s)

    @property
    def canaries(self) -> list[Replica]:
        return [one for one in self.replicas if one.name in self.rollout.canary]

    @property
    def controls(self) -> list[Replica]:
        return [one for one in self.replicas if one.name not in self.rollout.canary]

    def look(self, after_s: float = 1.0) -> Decision | None:
        self.now_s += after_s
        decision = self.trial.look(self.now_s, self.rollout, [one.status() for one in self.replicas])
        if decision is not None and decision.kind == "canary":
            self.rollout = Rollout(self.rollout.serial + 1, 1, 2, frozenset(decision.replicas))
        return decision

    def take_up(self) -> None:
        """Canaries run the candidate, and the trial has seen it."""
        for one in self.canaries:
            one.version = 2
        assert self.look() is None

    def started(self) -> Scene:
        assert self.look() is not None
        self.take_up()
        return self


def decided(decision: Decision | None) -> str:
    assert decision is not None
    assert decision.version == 2
    assert decision.by == "controller"
    return decision.kind


def test_a_share_of_the_replicas_is_chosen_and_named() -> None:
    scene = Scene(8)
    decision = scene.look()
    assert decided(decision) == "canary"
    assert decision is not None
    assert len(decision.replicas) == 2
    assert decision.reason == "2 of 8 replicas"
    assert scene.look() is None
    assert scene.trial.verdict == f"waits for {', '.join(decision.replicas)} to take it up"


def test_a_good_version_is_promoted_after_its_soak() -> None:
    scene = Scene(4).started()
    for _ in range(18):
        for one in scene.replicas:
            one.serve(1)
        assert scene.look() is None
    assert (scene.trial.canary.requests, scene.trial.control.requests) == (18, 54)
    decision = scene.look(2.0)
    assert decided(decision) == "promote"
    assert decision is not None
    assert decision.reason == scene.trial.verdict
    assert "over 18 and 54 requests" in decision.reason


def test_a_useless_version_is_revoked_before_its_soak_is_over() -> None:
    scene = Scene(2).started()
    for _ in range(10):
        scene.canaries[0].serve(1, BAD_REQUEST)
        scene.controls[0].serve(1)
        decision = scene.look()
    assert decided(decision) == "revoke"
    assert decision is not None
    assert decision.reason.startswith("acceptance length of one-token drafts 1.04 against 1.50 (-31 %, ")


def test_only_what_is_served_during_the_canary_under_the_right_version_counts() -> None:
    scene = Scene(2)
    for one in scene.replicas:
        one.serve(5)
    scene.look()
    for one in scene.replicas:
        one.serve(7)  # the canary still runs the stable version
    scene.take_up()
    assert scene.trial.canary == scene.trial.control == ArmSums()
    scene.canaries[0].serve(2)
    scene.controls[0].serve(3)
    scene.look()
    assert (scene.trial.canary.requests, scene.trial.control.requests) == (2, 3)


def test_requests_stay_counted_when_their_replica_dies() -> None:
    scene = Scene(3).started()
    for one in scene.replicas:
        one.serve(4)
    scene.look()
    scene.replicas.remove(scene.canaries[0])
    scene.replicas.remove(scene.controls[0])
    scene.look()
    assert (scene.trial.canary.requests, scene.trial.control.requests) == (4, 8)


def test_a_version_whose_sums_a_replica_dropped_counts_from_there() -> None:
    scene = Scene(2).started()
    scene.controls[0].serve(4)
    scene.look()
    scene.controls[0].arms = {}
    scene.look()
    scene.controls[0].serve(1)
    scene.look()
    assert scene.trial.control.requests == 5


def test_a_dead_canary_is_replaced_and_a_late_answer_is_not_death() -> None:
    scene = Scene(4).started()
    [dead] = scene.canaries
    scene.replicas.remove(dead)
    assert scene.look(ABSENT_S / 2) is None
    decision = scene.look(ABSENT_S)
    assert decided(decision) == "canary"
    assert decision is not None
    assert decision.reason == f"1 of 3 replicas, before: {dead.name}"
    assert dead.name not in decision.replicas
    assert scene.look() is None


def test_fewer_replicas_mean_fewer_canaries() -> None:
    scene = Scene(8).started()
    scene.replicas = scene.canaries + scene.controls[:2]
    decision = scene.look(ABSENT_S)
    assert decided(decision) == "canary"
    assert decision is not None
    assert len(decision.replicas) == 1


def test_a_version_under_which_replicas_keep_dying_is_revoked() -> None:
    scene = Scene(8, config=CONFIG.model_copy(update={"share": 0.125})).started()
    decisions = []
    for _ in range(MAX_DEATHS):
        scene.replicas.remove(scene.canaries[0])
        decisions.append(decided(scene.look(ABSENT_S)))
    assert decisions == ["canary"] * (MAX_DEATHS - 1) + ["revoke"]
    assert scene.trial.verdict == "3 replicas that ran it died"


def test_one_that_all_canaries_refuse_is_revoked() -> None:
    scene = Scene(8)
    scene.look()
    first, second = scene.canaries
    first.refused += 1
    assert scene.look() is None
    second.refused += 1
    decision = scene.look()
    assert decided(decision) == "revoke"
    assert decision is not None
    assert decision.reason == "refused by all replicas that were to try it; their logs say why"


def test_refusals_of_before_do_not_count() -> None:
    scene = Scene(2)
    for one in scene.replicas:
        one.refused = 3
    scene.look()
    assert scene.look() is None


def test_one_that_nobody_takes_up_is_revoked_after_a_while() -> None:
    scene = Scene(2)
    scene.look()
    assert scene.look() is None
    assert scene.look(TAKE_UP_S - 1) is None
    assert decided(scene.look()) == "revoke"
    assert scene.trial.verdict == "no replica that was to try it took it up in 120 s"


def test_the_soak_begins_when_it_runs() -> None:
    scene = Scene(2)
    scene.look()
    scene.look(60.0)
    scene.take_up()
    for one in scene.replicas:
        one.serve(10)
    assert scene.look() is None
    assert decided(scene.look(CONFIG.soak_s)) == "promote"


def test_a_single_replica_gets_it_at_once() -> None:
    decision = Scene(1).look()
    assert decided(decision) == "promote"
    assert decision is not None
    assert decision.reason == "there is only one replica"


def test_the_last_of_several_replicas_does_not() -> None:
    """The others are being started: they are what the candidate is to be compared with."""
    scene = Scene(1, expected=2)
    assert scene.look() is None
    assert scene.trial.verdict == "waits for a second replica to compare with: 1 of 2 answer"
    scene.replicas.append(Replica("late"))
    assert decided(scene.look()) == "canary"


def test_but_it_does_not_wait_for_ever() -> None:
    scene = Scene(1, expected=2)
    scene.look()
    decision = scene.look(60 * CONFIG.max_minutes)
    assert decided(decision) == "promote"
    assert decision is not None
    assert decision.reason == "one replica alone for 10 minutes"


def test_no_replica_decides_nothing() -> None:
    scene = Scene(0, expected=1)
    assert scene.look() is None
    assert scene.look(60 * CONFIG.max_minutes) is None


def test_one_that_the_registry_does_not_let_go_on_is_revoked() -> None:
    scene = Scene(2)
    scene.trial.refusals = MAX_REFUSALS - 1
    assert decided(scene.look()) == "canary"
    scene.trial.refusals += 1
    assert decided(scene.look()) == "revoke"
    assert scene.trial.verdict == "the registry does not let it go on; before: 1 of 2 replicas"


def test_a_restarted_controller_goes_on_with_the_same_canaries() -> None:
    scene = Scene(8).started()
    for one in scene.replicas:
        one.serve(50)
    scene.look()
    scene.trial = Trial(CONFIG, 8, scene.rollout, began_s=scene.now_s)
    assert scene.look() is None
    assert scene.trial.canary == ArmSums()
    for one in scene.replicas:
        one.serve(8)
    assert scene.look() is None  # its soak starts anew
    assert decided(scene.look(CONFIG.soak_s)) == "promote"
    assert "over 16 and 48 requests" in scene.trial.verdict


@pytest.mark.parametrize(
    "other",
    [
        Rollout(9, 1, 3),
        Rollout(9, 0, 2),
        Rollout(2, 1, 2),  # an earlier serial: the registry lost its data
    ],
)
def test_another_candidate_stable_version_or_history_is_another_trial(other: Rollout) -> None:
    trial = Scene(2).trial
    assert trial.compares(Rollout(8, 1, 2, frozenset({"r1"})))
    assert not trial.compares(other)
