"""What the arms of a bench share: target and drafter, loaded once, and the engines over them."""

from __future__ import annotations

from dataclasses import dataclass

from evospec.bench.arms import ArmName
from evospec.bench.ledger import ModelMemory
from evospec.bench.results import PLAIN
from evospec.config import Config, EngineConfig
from evospec.engine.build import build_engine, load_own_drafter, load_target
from evospec.engine.engine import Engine
from evospec.engine.flight import overlaps
from evospec.engine.retrieval import RetrievalPump
from evospec.models.drafter_store import LoadedDrafter
from evospec.models.target import Target


@dataclass(frozen=True, slots=True)
class BenchModels:
    """Loaded models; `drafter` is None when no arm drafts."""

    target: Target
    drafter: LoadedDrafter | None
    memory: ModelMemory

    @classmethod
    def load(cls, config: Config, *, drafts: bool) -> BenchModels:
        """Raises EvoSpecError subclasses: a model or drafter is not usable."""
        target = load_target(config)
        loaded = load_own_drafter(config, target) if drafts else None
        return cls(target, loaded, ModelMemory.of(target, None if loaded is None else loaded.drafter))

    @property
    def room(self) -> int:
        """Positions that all models reach."""
        reach = self.target.max_length
        return reach if self.drafter is None else min(reach, self.drafter.drafter.config.max_positions)

    def engine(self, name: ArmName, config: Config) -> Engine:
        """An engine for an arm of ours."""
        vocabulary = config.vocabulary
        if name.policy != PLAIN:
            vocabulary = vocabulary.model_copy(update={"policy": name.policy})
        own = config.model_copy(
            update={"engine": engine_config(name, config.engine), "vocabulary": vocabulary}
        )
        return build_engine(own, self.target, None if name.drafting is None else self.drafter)

    def retrieval(self, engine: Engine, config: Config) -> RetrievalPump:
        """What serves an engine of ours, beside it where its cycles run beside the host."""
        beside = overlaps(config.engine, self.target.device)
        return RetrievalPump.in_memory(engine, config.semantic, beside=beside)


def engine_config(name: ArmName, config: EngineConfig) -> EngineConfig:
    """How the arm drafts."""
    return config if name.drafting is None else name.drafting.apply(config)
