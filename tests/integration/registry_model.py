"""The rules of the rollout once more, in plain Python: what the servers' scripts must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field

from evospec.wire import Decision, Rollout, VersionState

KEEP = 3


@dataclass(slots=True)
class Kept:
    state: VersionState
    content: str
    fetchable: bool = True


@dataclass(slots=True)
class RolloutModel:
    """One thread, no server. Methods return whether the registry accepts; `events` counts changes."""

    stable: int = 0
    candidate: int = 0
    canary: frozenset[str] = frozenset()
    newest: int = 0
    epoch: int = 0
    events: int = 0
    kept: dict[int, Kept] = field(default_factory=dict)
    quarantine: set[str] = field(default_factory=set)

    @property
    def rollout(self) -> Rollout:
        return Rollout(self.events, self.stable, self.candidate, self.canary)

    @property
    def states(self) -> dict[int, VersionState]:
        return {version: kept.state for version, kept in sorted(self.kept.items())}

    def is_stale(self, version: int, epoch: int) -> bool:
        return version <= self.newest or epoch < self.epoch

    def publish(self, version: int, epoch: int, state: VersionState, content: str) -> bool:
        """For what is not stale."""
        if content in self.quarantine or (state == "candidate" and self.candidate):
            return False
        self.kept[version] = Kept(state, content)
        if state == "stable":
            self._stabilise(version)
        else:
            self.candidate, self.canary = version, frozenset()
        self.newest, self.epoch = version, epoch
        old = sorted(self.kept)[:-KEEP]
        spared = (self.stable, self.candidate, self._newest_proven_below(self.stable))
        for trimmed in [one for one in old if one not in spared]:
            del self.kept[trimmed]
        self.events += 1
        return True

    def decide(self, decision: Decision) -> bool:
        if self._holds(decision):
            return True
        if not self._fits(decision):
            return False
        version = decision.version
        if decision.kind == "canary":
            self.kept[version].state = "canary"
            self.canary = frozenset(decision.replicas)
        elif decision.kind == "promote":
            self._stabilise(version)
        elif decision.kind == "revoke":
            self._withdraw(version)
            if version == self.stable:
                self.stable = self._newest_proven_below(version)
        else:
            for later in self._later(version):
                self._withdraw(later)
            self._stabilise(version)
        self.events += 1
        return True

    def _holds(self, decision: Decision) -> bool:
        version = decision.version
        match decision.kind:
            case "canary":
                return 0 < version == self.candidate and frozenset(decision.replicas) == self.canary
            case "promote":
                return 0 < version == self.stable
            case "revoke":
                return version in self.kept and self.kept[version].state == "revoked"
        return version == self.stable and not self.candidate and not self._later(version)

    def _fits(self, decision: Decision) -> bool:
        version = decision.version
        if version == 0:
            return decision.kind == "rollback"
        if version not in self.kept:
            return False
        if decision.kind == "revoke":
            return True
        if self.kept[version].state == "revoked" or not self.kept[version].fetchable:
            return False
        match decision.kind:
            case "canary":
                return version == self.candidate
            case "promote":
                return version > self.stable
        return version < self.stable

    def _stabilise(self, version: int) -> None:
        if 0 < self.candidate <= version:
            self.kept[self.candidate].state = "candidate"
            self.candidate, self.canary = 0, frozenset()
        if version:
            self.kept[version].state = "stable"
        self.stable = version

    def _withdraw(self, version: int) -> None:
        self.kept[version].state = "revoked"
        self.quarantine.add(self.kept[version].content)
        if version == self.candidate:
            self.candidate, self.canary = 0, frozenset()

    def _later(self, version: int) -> list[int]:
        return [one for one, kept in self.kept.items() if one > version and kept.state != "revoked"]

    def _newest_proven_below(self, version: int) -> int:
        return max((one for one in self.kept if one < version and self._proven(one)), default=0)

    def _proven(self, version: int) -> bool:
        return self.kept[version].state == "stable" and self.kept[version].fetchable
