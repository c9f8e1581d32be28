"""What an arm of our engine has cost so far: kept while a bench is built, warmed up and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from evospec.bench.costs import ArmCosts, DeviceMemory, Upkeep
from evospec.bench.measure import Batch, EngineArm, Turn
from evospec.bench.memory import allocated_mb, occupied_mb
from evospec.bench.profile import profile
from evospec.bench.results import Breakdown
from evospec.bench.upkeep import measure_upkeep, upkeep_batch
from evospec.engine.engine import Engine
from evospec.engine.retrieval import RetrievalPump
from evospec.models.drafter import Drafter
from evospec.models.target import Target

_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What arms share, MiB on the device: parameters, and what loaded models hold besides them."""

    weights_mb: float
    models_mb: float

    @classmethod
    def of(cls, target: Target, drafter: Drafter | None) -> ModelMemory:
        """Right after loading: all that is allocated is the models'."""
        weights = [*target.model.parameters(), *([] if drafter is None else drafter.parameters())]
        distinct = {weight.data_ptr(): weight.nbytes for weight in weights}
        parameters = sum(distinct.values()) / _MEBIBYTE
        return cls(parameters, max(0.0, allocated_mb(target.device) - parameters))


@dataclass(slots=True)
class Ledger:
    """One engine, and what was noted of it.

    Attributes:
        built_mb: allocated when it was built.
    """

    name: str
    engine: Engine
    retrieval: RetrievalPump
    built_mb: float
    graphs_mb: float = 0.0
    captures_before: int = 0
    upkeep: Upkeep | None = None

    @property
    def device(self) -> torch.device:
        return self.engine.target.device

    @classmethod
    def of(cls, arm: object, built_mb: float) -> Ledger | None:
        """None for arms that are not our engine."""
        if isinstance(arm, EngineArm) and isinstance(arm.engine, Engine):
            return cls(arm.name.text, arm.engine, arm.retrieval, built_mb)
        return None

    def prepare(self, longest: int) -> None:
        """Has graphs captured for requests of up to `longest` positions."""
        before = occupied_mb(self.device)
        self.engine.prepare(longest)
        self.graphs_mb = occupied_mb(self.device) - before

    def profile(self, batches: dict[str, Batch], warm_up: Batch) -> dict[str, Breakdown]:
        return profile(self.engine, self.retrieval, batches, warm_up, self.device)

    def measure_upkeep(self, batch: Batch, room: int) -> None:
        vocab_size = self.engine.target.vocab_size
        self.upkeep = measure_upkeep(self.engine, upkeep_batch(batch, room), vocab_size)

    def costs(self, shared: ModelMemory, batch: int, turns: Sequence[Turn]) -> ArmCosts:
        """Args: turns: of all arms."""
        own = [turn for turn in turns if turn.arm == self.name]
        return ArmCosts(
            name=self.name,
            batch=batch,
            captures_before=self.captures_before,
            captures_timed=sum(turn.captures for turn in own),
            memory=self._memory(shared, own) if self.device.type == "cuda" else None,
            upkeep=self.upkeep,
        )

    def _memory(self, shared: ModelMemory, turns: Sequence[Turn]) -> DeviceMemory:
        cache = self.engine.cache_bytes / _MEBIBYTE
        return DeviceMemory(
            weights_mb=shared.weights_mb,
            cache_mb=cache,
            models_mb=shared.models_mb,
            buffers_mb=self.built_mb - cache,
            graphs_mb=self.graphs_mb,
            transient_mb=max((turn.transient_mb or 0.0 for turn in turns), default=0.0),
        )
