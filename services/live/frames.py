"""From what was seen to what is shown: rates over the latest seconds, as plain JSON."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.status import ReplicaStatus
from evospec.engine.counters import growth, total
from evospec.engine.stats import EngineStats
from services.live.sighting import Sighting

SPEED_S = 5.0  # tokens/s are of so many seconds
STEADY_S = 2.0  # speeds of less say little
RATIO_S = 30.0  # acceptance and coverage, which need more to be steady
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Counted:
    """All replicas' counters at one moment."""

    time_s: float
    engines: Mapping[str, EngineStats]


@dataclass(frozen=True, slots=True)
class _Growth:
    counters: EngineStats
    seconds: float


@dataclass(slots=True)
class Frames:
    """Makes a frame of each sighting.

    A ratio whose denominator has not grown is None: nothing was observed, which is not 0.
    """

    _counted: deque[_Counted] = field(default_factory=deque)

    def frame(self, seen: Sighting) -> Json:
        """What changed and stands at `seen`; sightings come in order of time."""
        now = _Counted(seen.time_s, {status.replica: status.engine for status in seen.replicas})
        if now.engines:
            self._counted.append(now)
        while len(self._counted) > 2 and self._counted[1].time_s <= seen.time_s - RATIO_S:
            self._counted.popleft()
        canary = frozenset(seen.rollout.canary) if seen.rollout is not None else frozenset[str]()
        return {
            "time": round(seen.time_s, 3),
            **self._traffic(now, now.engines.keys()),
            "sources": _sources(seen.replicas),
            "positions": self._positions(now),
            "replicas": [
                self._replica(now, status, canary)
                for status in sorted(seen.replicas, key=lambda status: status.replica)
            ],
            "rollout": _rollout(seen),
            "aligner": _aligner(seen),
            "index": _index(seen.replicas),
        }

    def _traffic(self, now: _Counted, names: Collection[str]) -> Json:
        """Speed, ratios and load of some replicas together."""
        fresh = self._grown(now, SPEED_S, names)
        ratios = self._grown(now, RATIO_S, names).counters
        engines = [now.engines[name] for name in names]
        return {
            "tokens_per_s": _rate(fresh),
            "acceptance_length": round(ratios.acceptance_length, 4) if ratios.drafts else None,
            "coverage": round(ratios.coverage, 5) if ratios.coverable_tokens else None,
            "active_rows": round(sum(one.active_rows for one in engines) / len(engines)) if engines else 0,
            "running": sum(one.running for one in engines),
            "waiting": sum(one.waiting for one in engines),
            "finished": sum(one.requests_finished for one in engines),
        }

    def _replica(self, now: _Counted, status: ReplicaStatus, canary: frozenset[str]) -> Json:
        engine = status.engine
        return {
            "name": status.replica,
            "version": engine.adapter_version,
            "canary": status.replica in canary,
            "epoch": engine.vocabulary_epoch,
            "plan": engine.draft_plan,
            "refused": status.weights.refused,
            **self._traffic(now, (status.replica,)),
        }

    def _positions(self, now: _Counted) -> list[Json]:
        grown = self._grown(now, RATIO_S, now.engines.keys()).counters
        return [
            {"attempted": attempted, "accepted": accepted}
            for attempted, accepted in zip(
                grown.attempted_per_position, grown.accepted_per_position, strict=True
            )
        ]

    def _grown(self, now: _Counted, window_s: float, names: Collection[str]) -> _Growth:
        """What was counted since the window began, and in how many seconds."""
        earlier = [one for one in self._counted if one.time_s <= now.time_s - window_s]
        first = earlier[-1] if earlier else self._counted[0] if self._counted else now
        grown = total(
            # A replica that was not there has counted from zero.
            growth(first.engines.get(name, EngineStats()), now.engines[name])
            for name in names
        )
        return _Growth(grown, now.time_s - first.time_s)


def _rate(grown: _Growth) -> float | None:
    return round(grown.counters.emitted_tokens / grown.seconds, 2) if grown.seconds >= STEADY_S else None


def _sources(replicas: tuple[ReplicaStatus, ...]) -> Json:
    """Active rows that each source gave, as a mean of the replicas."""
    summed: dict[str, int] = {}
    for status in replicas:
        for name, rows in status.engine.rows_by_source.items():
            summed[name] = summed.get(name, 0) + rows
    return {name: round(rows / len(replicas), 1) for name, rows in summed.items()}


def _rollout(seen: Sighting) -> Json | None:
    if seen.rollout is None:
        return None
    status = seen.rollout
    return {
        "phase": status.phase,
        "stable": status.stable,
        "candidate": status.candidate,
        "canary": list(status.canary),
        "verdict": status.verdict,
        "canary_requests": status.canary_arm.requests,
        "control_requests": status.control_arm.requests,
    }


def _aligner(seen: Sighting) -> Json | None:
    if seen.aligner is None:
        return None
    status = seen.aligner
    return {
        "received": status.progress.received,
        "steps": status.trainer.steps,
        "loss": _finite(status.progress.loss),
        "gated": status.progress.gated,
        "rejected": status.progress.rejected,
        **{
            name: value
            for name, value in asdict(status.publisher).items()
            if name in ("published", "promoted", "revoked", "stable", "pending", "version")
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _index(replicas: tuple[ReplicaStatus, ...]) -> Json:
    counts = [status.index for status in replicas]
    return {
        "lookups": sum(one.lookups for one in counts),
        "hits": sum(one.hits for one in counts),
        "failures": sum(one.failures for one in counts),
        "written": sum(one.points_written for one in counts),
    }
