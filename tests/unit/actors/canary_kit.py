"""Replicas as a canary's trial and the rollout controller see them."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors.counts import FollowerCounts, IndexCounts, TraceCounts
from actors.status import ReplicaStatus
from evospec.align.arm import ArmSums, Observation
from evospec.engine.stats import EngineStats
from tests.unit.actors.fakes import FINGERPRINTS

REQUEST = ArmSums.of(Observation(tokens=100, cycles=60, seconds=5.0, drafts=50, hits=25))
BAD_REQUEST = ArmSums.of(Observation(tokens=100, cycles=96, seconds=8.0, drafts=50, hits=2))


@dataclass
class Replica:
    """One that takes up what it is told, unless it refuses."""

    name: str
    version: int = 1
    refused: int = 0
    arms: dict[int, ArmSums] = field(default_factory=dict)

    def serve(self, requests: int, request: ArmSums = REQUEST) -> None:
        for _ in range(requests):
            self.arms = {**self.arms, self.version: self.arms.get(self.version, ArmSums()) + request}

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            self.name,
            FINGERPRINTS,
            EngineStats(adapter_version=self.version),
            TraceCounts(),
            IndexCounts(),
            FollowerCounts(version=self.version, refused=self.refused),
            self.arms,
        )
