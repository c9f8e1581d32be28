"""What a replica reports of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.counts import FollowerCounts, IndexCounts, TraceCounts
from evospec.align.arm import ArmSums
from evospec.engine.stats import EngineStats
from evospec.wire import Fingerprints


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """Counters of one replica and of the threads beside its engine.

    `arms` sums up the requests that each adapter version served, for the latest versions.
    """

    replica: str
    fingerprints: Fingerprints
    engine: EngineStats
    traces: TraceCounts
    index: IndexCounts
    weights: FollowerCounts
    arms: dict[int, ArmSums] = field(default_factory=dict)
