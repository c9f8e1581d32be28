"""One candidate on its way through its canary, as the replicas show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.canary import choose_canaries, judge
from actors.status import ReplicaStatus
from evospec.align.arm import ArmSums
from evospec.config import RolloutConfig
from evospec.wire import Decision, DecisionKind, Rollout

BY = "controller"
ABSENT_S = 15.0  # a replica that did not answer for this long is gone
TAKE_UP_S = 120.0  # for a canary replica to fetch, check and apply a version
MAX_DEATHS = 3  # of replicas in one canary place
MAX_REFUSALS = 3  # of decisions; the registry does not refuse to revoke a candidate


@dataclass(slots=True)
class Trial:
    """What was seen of a candidate, and what follows from it.

    Which replicas run it stands in the registry. Requests count from the first look at a canary
    replica that runs it, so that both arms are of the same time; what a replica has served stays
    counted when it dies.

    Attributes:
        replicas: how many there should be: a candidate is not promoted untried just because
            the others are being restarted.
        placed_s: when it was first seen to have canary replicas.
        running_s: when one of them was first seen to run it.
        lost: canary replicas that went away.
        refusals: decisions that the registry did not carry out.
        verdict: what the last look came to.
    """

    config: RolloutConfig
    replicas: int
    rollout: Rollout
    began_s: float
    placed_s: float | None = None
    running_s: float | None = None
    canary: ArmSums = field(default_factory=ArmSums)
    control: ArmSums = field(default_factory=ArmSums)
    lost: set[str] = field(default_factory=set)
    refusals: int = 0
    verdict: str = ""
    _arms: dict[str, dict[int, ArmSums]] = field(default_factory=dict)
    _refused_before: dict[str, int] = field(default_factory=dict)
    _answered_s: dict[str, float] = field(default_factory=dict)

    def compares(self, rollout: Rollout) -> bool:
        """Whether this is the trial of `rollout`'s candidate, against its stable version."""
        before = self.rollout
        same = (rollout.candidate, rollout.stable) == (before.candidate, before.stable)
        return same and rollout.serial >= before.serial  # else the registry lost its data

    def look(self, now_s: float, rollout: Rollout, statuses: Sequence[ReplicaStatus]) -> Decision | None:
        """Takes in what the replicas report; returns what is to be decided now, if anything.

        Args:
            statuses: of the replicas that answered.
        """
        self.rollout = rollout
        self._take_in(now_s, statuses)
        if self.refusals >= MAX_REFUSALS:
            return self._decide("revoke", f"the registry does not let it go on; before: {self.verdict}")
        present = [name for name, seen_s in self._answered_s.items() if now_s - seen_s < ABSENT_S]
        if len(present) < 2:
            return self._wait_for_controls(now_s, len(present))
        return self._place(present) or self._withdraw(now_s, statuses) or self._judge(now_s)

    def _take_in(self, now_s: float, statuses: Sequence[ReplicaStatus]) -> None:
        for status in statuses:
            self._count(status)
            self._arms[status.replica] = status.arms
            self._answered_s[status.replica] = now_s
            self._refused_before.setdefault(status.replica, status.weights.refused)
        if self.placed_s is None and self.rollout.canary:
            self.placed_s = now_s
        if self.running_s is None and any(self._runs(status) for status in statuses):
            self.running_s = now_s

    def _count(self, status: ReplicaStatus) -> None:
        """Adds what the replica has served since the last look under the version it is to run."""
        if self.running_s is None or status.replica not in self._arms:
            return
        version = self.rollout.wanted(status.replica)
        before = self._arms[status.replica].get(version, ArmSums())
        grown = status.arms.get(version, ArmSums()) - before
        if grown.requests <= 0:  # below 0: the replica no longer keeps that version's sums
            return
        if status.replica in self.rollout.canary:
            self.canary += grown
        else:
            self.control += grown

    def _wait_for_controls(self, now_s: float, present: int) -> Decision | None:
        if present == 1 and self.replicas == 1:
            return self._decide("promote", "there is only one replica")
        self.verdict = f"waits for a second replica to compare with: {present} of {self.replicas} answer"
        if present and now_s - self.began_s >= 60 * self.config.max_minutes:
            return self._decide("promote", f"one replica alone for {self.config.max_minutes:g} minutes")
        return None

    def _place(self, present: Sequence[str]) -> Decision | None:
        """Chooses canary replicas, and others in place of those that went away."""
        now = self.rollout.canary
        self.lost |= now.difference(present)
        chosen = choose_canaries(self.rollout.candidate, present, now, self.config.share)
        if len(self.lost) >= MAX_DEATHS * len(chosen):
            return self._decide("revoke", f"{len(self.lost)} replicas that ran it died")
        if chosen == now:
            return None
        reason = f"{len(chosen)} of {len(present)} replicas"
        if now:
            reason += f", before: {', '.join(sorted(now))}"
        return self._decide("canary", reason, tuple(sorted(chosen)))

    def _withdraw(self, now_s: float, statuses: Sequence[ReplicaStatus]) -> Decision | None:
        """Revokes a candidate that the canary replicas can't or don't run."""
        refusing = {status.replica for status in statuses if self._refuses(status)}
        if refusing >= self.rollout.canary:
            return self._decide("revoke", "refused by all replicas that were to try it; their logs say why")
        if self.running_s is None and self.placed_s is not None and now_s - self.placed_s >= TAKE_UP_S:
            return self._decide("revoke", f"no replica that was to try it took it up in {TAKE_UP_S:g} s")
        return None

    def _judge(self, now_s: float) -> Decision | None:
        if self.running_s is None:
            self.verdict = f"waits for {', '.join(sorted(self.rollout.canary))} to take it up"
            return None
        verdict = judge(self.config, now_s - self.running_s, self.canary, self.control)
        self.verdict = verdict.reason
        return None if verdict.kind == "continue" else self._decide(verdict.kind, verdict.reason)

    def _decide(self, kind: DecisionKind, reason: str, replicas: tuple[str, ...] = ()) -> Decision:
        self.verdict = reason
        return Decision(kind=kind, version=self.rollout.candidate, by=BY, reason=reason, replicas=replicas)

    def _runs(self, status: ReplicaStatus) -> bool:
        return (
            status.replica in self.rollout.canary and status.engine.adapter_version == self.rollout.candidate
        )

    def _refuses(self, status: ReplicaStatus) -> bool:
        return (
            status.replica in self.rollout.canary
            and not self._runs(status)
            and status.weights.refused > self._refused_before[status.replica]
        )
