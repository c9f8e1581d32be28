"""What the replicas reported while traffic ran, and what can be read from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from actors.status import ReplicaStatus
from evospec.engine.counters import growth, total
from evospec.engine.stats import EngineStats
from services.demo.results import ReplicaSample, Rollout, TimelinePoint


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All replicas' counters at one moment, by the name the demo gives them."""

    time_s: float
    engines: dict[str, EngineStats]


@dataclass(frozen=True, slots=True)
class Rate:
    """Speed and acceptance length over a while before `time_s`; the latter None when nothing was drafted."""

    time_s: float
    tokens_per_s: float
    acceptance_length: float | None


@dataclass(slots=True)
class Timeline:
    """Snapshots in order of time. Replicas are numbered in the order in which they appear."""

    snapshots: list[Snapshot] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    missed: int = 0  # times the replicas did not answer
    _names: dict[str, str] = field(default_factory=dict)
    _seen: dict[int, set[str]] = field(default_factory=dict)

    def add(self, time_s: float, statuses: Iterable[ReplicaStatus]) -> None:
        engines = {}
        for status in sorted(statuses, key=lambda status: status.replica):
            name = self._names.setdefault(status.replica, f"replica {len(self._names) + 1}")
            engines[name] = status.engine
            self._seen.setdefault(status.engine.adapter_version, set()).add(name)
        self.snapshots.append(Snapshot(time_s, engines))
        done = {rollout.version for rollout in self.rollouts}
        for version, names in sorted(self._seen.items()):
            if version > 0 and version not in done and names >= engines.keys():
                self.rollouts.append(Rollout(version=version, time_s=time_s))

    def between(self, start_s: float, end_s: float) -> EngineStats:
        """Growth of all replicas' counters from the snapshot before `start_s` to the one after `end_s`."""
        before = [snapshot for snapshot in self.snapshots if snapshot.time_s <= start_s]
        after = [snapshot for snapshot in self.snapshots if snapshot.time_s >= end_s]
        first = before[-1] if before else self.snapshots[0]
        last = after[0] if after else self.snapshots[-1]
        return _growth(first, last)

    def rates(self, window_s: float) -> list[Rate]:
        """Rates over the window before each snapshot but the first."""
        return [
            _rate(_start_of(self.snapshots[: index + 1], window_s), snapshot)
            for index, snapshot in enumerate(self.snapshots)
            if index
        ]

    def latest(self, window_s: float) -> dict[str, Rate]:
        """Each replica's rate over the window before the last snapshot."""
        if len(self.snapshots) < 2:
            return {}
        first, last = _start_of(self.snapshots, window_s), self.snapshots[-1]
        return {
            name: _rate(_only(first, name), _only(last, name))
            for name in last.engines
            if name in first.engines
        }

    def points(self) -> tuple[TimelinePoint, ...]:
        return tuple(
            TimelinePoint(
                time_s=snapshot.time_s,
                replicas=tuple(_sample(name, engine) for name, engine in snapshot.engines.items()),
            )
            for snapshot in self.snapshots
        )


def _start_of(snapshots: Sequence[Snapshot], window_s: float) -> Snapshot:
    """The last snapshot that is at least `window_s` older than the latest; else the first."""
    earlier = [one for one in snapshots[:-1] if one.time_s <= snapshots[-1].time_s - window_s]
    return earlier[-1] if earlier else snapshots[0]


def _growth(first: Snapshot, last: Snapshot) -> EngineStats:
    """A replica that was not there at first has counted from zero."""
    return total(
        growth(first.engines.get(name, EngineStats()), engine) for name, engine in last.engines.items()
    )


def _rate(first: Snapshot, last: Snapshot) -> Rate:
    grown = _growth(first, last)
    return Rate(
        time_s=last.time_s,
        tokens_per_s=grown.emitted_tokens / (last.time_s - first.time_s),
        acceptance_length=grown.acceptance_length if grown.drafts else None,
    )


def _only(snapshot: Snapshot, name: str) -> Snapshot:
    return Snapshot(snapshot.time_s, {name: snapshot.engines[name]})


def _sample(name: str, engine: EngineStats) -> ReplicaSample:
    return ReplicaSample(
        replica=name,
        emitted_tokens=engine.emitted_tokens,
        cycles=engine.cycles,
        drafts=engine.drafts,
        accepted_tokens=engine.accepted_tokens,
        active_rows=engine.active_rows,
        vocabulary_epoch=engine.vocabulary_epoch,
        adapter_version=engine.adapter_version,
        running=engine.running,
        waiting=engine.waiting,
    )
