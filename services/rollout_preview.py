"""What a decision makes of a rollout, told before it is carried out or after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from evospec.wire import Decision, Rollout, VersionState
from services.registry_answer import Answer, refused_decision


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a registry holds: the rollout, and the state of each version that is kept."""

    rollout: Rollout
    states: dict[int, VersionState]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A decision with what it changed or, in a dry run, would change.

    `running` maps each replica to the version it acknowledged.
    """

    decision: Decision
    before: Holdings
    after: Holdings
    running: dict[str, int]
    dry_run: bool

    @property
    def changed(self) -> bool:
        """Whether there was anything to carry out; the registry counts what it carried out."""
        return self.before.rollout.serial != self.after.rollout.serial

    @property
    def revoked(self) -> list[int]:
        states = self.after.states.items()
        return sorted(v for v, state in states if state == "revoked" != self.before.states.get(v))

    @property
    def moves(self) -> dict[str, tuple[int, int]]:
        """Versions from and to of each replica that has to change."""
        return {
            replica: (version, self.after.rollout.wanted(replica))
            for replica, version in sorted(self.running.items())
            if version != self.after.rollout.wanted(replica)
        }

    def as_dict(self) -> dict[str, Any]:
        rollout = self.after.rollout
        return {
            "dry_run": self.dry_run,
            "changed": self.changed,
            "stable": rollout.stable,
            "candidate": rollout.candidate,
            "revoked": self.revoked,
            "replicas": {name: {"from": old, "to": new} for name, (old, new) in self.moves.items()},
        }

    def __str__(self) -> str:
        """One line for people."""
        if not self.changed:
            what = "revoked" if self.decision.kind == "revoke" else "stable"
            return f"nothing to do: {_name(self.decision.version)} is {what} already"
        parts = []
        if self.revoked:
            parts.append(f"{_names(self.revoked)} {self._tense('revoked', len(self.revoked))}")
        stable = self.after.rollout.stable
        if stable == self.before.rollout.stable:
            parts.append(f"{_name(stable)} stays stable")
        else:
            parts.append(f"{_name(stable)} {self._tense('stable')}{'' if self.dry_run else ' now'}")
        line = f"{', '.join(parts)}; {self._replicas()}"
        return f"dry run, nothing was changed: {line}" if self.dry_run else line

    def _tense(self, what: str, count: int = 1) -> str:
        if self.dry_run:
            return f"would be {what}"
        return f"{'is' if count == 1 else 'are'} {what}"

    def _replicas(self) -> str:
        moves = self.moves
        if not moves:
            return "no replica has to change"
        groups = Counter(old for old, _ in moves.values()).most_common()
        count = "1 replica" if len(moves) == 1 else f"{len(moves)} replicas"
        change = f"{count} {'would' if self.dry_run else 'will'} change"
        if len(groups) == 1:
            return f"{change} from {_short(groups[0][0])}"
        return f"{change}: " + ", ".join(f"{number} from {_short(version)}" for version, number in groups)


def preview(decision: Decision, now: Holdings, is_there: Callable[[int], bool], address: str) -> Holdings:
    """What the registry would hold after an operator's decision; its script decides by the same rules.

    Args:
        is_there: whether the registry has the bytes of a version that it keeps.
        address: where the registry is, for messages.

    Raises:
        DecisionRefusedError: the registry would not carry it out.
    """
    if _holds(decision, now):
        return now
    refusal = _refusal(decision, now, is_there)
    if refusal is not None:
        kept, rollout = tuple(sorted(now.states)), now.rollout
        newest = max(kept, default=0)
        answer = Answer(refusal, rollout.stable, rollout.candidate, newest, epoch=0, kept=kept)
        raise refused_decision(decision, answer, address)
    after = _carried_out(decision, now, is_there)
    return Holdings(replace(after.rollout, serial=now.rollout.serial + 1), after.states)


def _carried_out(decision: Decision, now: Holdings, is_there: Callable[[int], bool]) -> Holdings:
    if decision.kind == "promote":
        return _with_stable(decision.version, now)
    if decision.kind == "rollback":
        return _with_stable(decision.version, _without(_later(decision.version, now), now))
    after = _without([decision.version], now)
    if decision.version != now.rollout.stable:
        return after
    proven = [v for v, state in after.states.items() if state == "stable" and v < decision.version]
    below = next((v for v in sorted(proven, reverse=True) if is_there(v)), 0)
    return Holdings(replace(after.rollout, stable=below), after.states)


def _holds(decision: Decision, now: Holdings) -> bool:
    version, rollout = decision.version, now.rollout
    match decision.kind:
        case "promote":
            return version == rollout.stable and version > 0
        case "rollback":
            return version == rollout.stable and not _later(version, now)
    return now.states.get(version) == "revoked"


def _refusal(decision: Decision, now: Holdings, is_there: Callable[[int], bool]) -> str | None:
    """The rule that a decision breaks, as the registry's script names it."""
    version, stable = decision.version, now.rollout.stable
    if version == 0:
        return None if decision.kind == "rollback" else "base"
    if decision.kind == "revoke":
        known = version in now.states or version in (stable, now.rollout.candidate)
        return None if known else "missing"
    if now.states.get(version) == "revoked":
        return "revoked"
    if version not in now.states or not is_there(version):
        return "missing"
    if decision.kind == "promote":
        return "older" if version < stable else None
    if version == stable:
        return "stable already"
    return "newer" if version > stable else None


def _later(version: int, now: Holdings) -> list[int]:
    """Versions above `version` that replicas could still be told to run."""
    return sorted(kept for kept, state in now.states.items() if kept > version and state != "revoked")


def _without(revoked: list[int], now: Holdings) -> Holdings:
    states = dict(now.states)
    states.update({version: "revoked" for version in revoked if version in states})
    rollout = now.rollout
    if rollout.candidate in revoked:
        rollout = replace(rollout, candidate=0, canary=frozenset())
    return Holdings(rollout, states)


def _with_stable(version: int, now: Holdings) -> Holdings:
    states, rollout = dict(now.states), replace(now.rollout, stable=version)
    if rollout.candidate and rollout.candidate <= version:  # one that is overtaken waits no longer
        if rollout.candidate in states:
            states[rollout.candidate] = "candidate"
        rollout = replace(rollout, candidate=0, canary=frozenset())
    if version in states:
        states[version] = "stable"
    return Holdings(rollout, states)


def _short(version: int) -> str:
    return str(version) if version else "the base"


def _name(version: int) -> str:
    return f"version {version}" if version else "the base"


def _names(versions: list[int]) -> str:
    if len(versions) == 1:
        return _name(versions[0])
    return f"versions {', '.join(map(str, versions[:-1]))} and {versions[-1]}"
