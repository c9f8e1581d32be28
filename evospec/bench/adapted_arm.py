"""An arm that adapts: an engine with a drafter of its own, and the trainer that learns from its traces."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median

from evospec.align.build import trainer_over
from evospec.align.replay import Admission
from evospec.align.trainer import AlignmentTrainer
from evospec.bench.align_arms import AlignArm
from evospec.bench.align_records import UpdateCosts
from evospec.bench.arms import ArmName, Drafting
from evospec.bench.live_bytes import ExtraMemory
from evospec.bench.measure import Batch, EngineArm, Turn
from evospec.bench.memory import PeakMemory
from evospec.bench.models import BenchModels
from evospec.config import Config
from evospec.engine.engine import Engine
from evospec.models.adapter import AdapterWeights

_MEBIBYTE = 1 << 20


@dataclass(slots=True)
class UpdateLog:
    """What updates have taken so far; times in seconds."""

    memory: ExtraMemory
    step_seconds: list[float] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    published: int = 0
    rejected: int = 0
    admitted: int = 0

    @contextmanager
    def update(self) -> Iterator[None]:
        started, steps = time.perf_counter(), len(self.step_seconds)
        with self.memory.watch():
            yield
        if len(self.step_seconds) > steps:
            self.update_seconds.append(time.perf_counter() - started)

    def costs(self, name: str, trainer: AlignmentTrainer) -> UpdateCosts:
        return UpdateCosts(
            arm=name,
            updates=len(self.update_seconds),
            steps=len(self.step_seconds),
            published=self.published,
            rejected=self.rejected,
            traces=self.admitted,
            trace_mb=trainer.replay.nbytes / _MEBIBYTE,
            trained_parameters=trainer.trained_parameters,
            step_ms=1000 * median(self.step_seconds) if self.step_seconds else 0.0,
            update_ms=1000 * median(self.update_seconds) if self.update_seconds else 0.0,
            seconds=sum(self.update_seconds),
            held_mb=self.memory.held_mb,
            peak_mb=self.memory.peak_mb,
            measure=self.memory.measure,
        )


@dataclass(slots=True)
class Learner:
    """Feeds a trainer with an engine's traces as the aligner does, on this thread, between batches.

    Attributes:
        latest: the version that the engine drafts with; None: the base.
    """

    arm: AlignArm
    engine: Engine
    trainer: AlignmentTrainer
    log: UpdateLog
    latest: AdapterWeights | None = None
    _requests: int = 0
    _since_version: int = 0

    def learn(self, requests: int) -> None:
        """Takes the traces of so many requests that have ended, and updates the drafter if that is due."""
        with self.log.memory.watch():  # another kind of traffic may get an adapter
            for trace in self.engine.take_traces():
                admission = self.trainer.add(trace)
                self.log.admitted += admission in (Admission.TRAINING, Admission.HELD_OUT)
        self._requests += requests
        if self._requests >= self.arm.update_every:
            self._requests = 0
            with self.log.update():
                self._update()

    def _update(self) -> None:
        while self.trainer.due:
            step = self.trainer.step()
            self.log.step_seconds.append(step.seconds)
            self._since_version += step.applied
            if self.arm.gated and self._since_version >= self.arm.config.steps_per_version:
                self._offer()
        if not self.arm.gated and self._since_version:
            self._offer()

    def _offer(self) -> None:
        self._since_version = 0
        report = self.trainer.gate() if self.arm.gated else None
        if report is not None and not report.passes(self.arm.config.min_gain):
            self.log.rejected += 1
            return
        adapter = self.trainer.candidate(self.engine.stats.adapter_version + 1, report)
        self.engine.swap_adapter(adapter)
        self.latest = adapter
        self.trainer.accept()
        self.log.published += 1


@dataclass(slots=True)
class AdaptedArm:
    """Attributes: learner: None for `none`."""

    arm: AlignArm
    decoder: EngineArm
    engine: Engine
    learner: Learner | None

    @classmethod
    def build(cls, arm: AlignArm, models: BenchModels, config: Config, drafting: Drafting) -> AdaptedArm:
        """Raises EvoSpecError: the drafter can't be adapted, or not with these options.

        Args:
            models: loaded, with a drafter that no engine works with: it is copied.
        """
        if models.drafter is None:
            raise ValueError("models without a drafter have nothing to adapt")
        own = config.model_copy(update={"alignment": arm.config})
        loaded = replace(models.drafter, drafter=copy.deepcopy(models.drafter.drafter))
        name = ArmName(arm.text, arm.policy, drafting)
        engine = replace(models, drafter=loaded).engine(name, own)
        decoder = EngineArm(name, engine, models.retrieval(engine, own))
        if not arm.adapts:
            return cls(arm, decoder, engine, None)
        target, log = models.target, UpdateLog(ExtraMemory(models.target.device))
        with log.memory.watch():
            trainer = trainer_over(
                own, models.drafter, target.tables, target.tokenizer.all_special_ids, engine.fingerprints
            )
        return cls(arm, decoder, engine, Learner(arm, engine, trainer, log))

    def decode(self, batch: Batch, memory: PeakMemory) -> Turn:
        return self.decoder.run(batch, memory)

    def learn(self, requests: int) -> None:
        if self.learner is not None:
            self.learner.learn(requests)

    @property
    def costs(self) -> UpdateCosts | None:
        """None for `none`."""
        learner = self.learner
        return None if learner is None else learner.log.costs(self.arm.text, learner.trainer)
