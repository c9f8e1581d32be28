"""A training run in an output folder: checkpoints, exports, measurements on the way, and an orderly end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from evospec import __version__
from evospec.align.acceptance import AcceptanceCounts
from evospec.errors import EvoSpecError
from evospec.training.checkpoint import (
    Checkpoint,
    CheckpointRecord,
    CheckpointStore,
    Identity,
    Measurement,
)
from evospec.training.corpus import Corpus
from evospec.training.curve import FILE as CURVE_FILE
from evospec.training.curve import write_curve
from evospec.training.disk import disk_errors
from evospec.training.export import export_drafter
from evospec.training.history import History
from evospec.training.memory import memory_errors, training_advice
from evospec.training.progress import Progress
from evospec.training.provenance import now
from evospec.training.split import Split
from evospec.training.stopping import StoppedError, StopSignal
from evospec.training.trainer import DivergedError, DrafterTrainer

# Each time the tokens trained on have about doubled.
_MEASURED_AT = (1 / 8, 1 / 4, 1 / 2)
_PROBED = 32
_PROBE_PART = 4  # the conversations of a measurement hold at most one in so many tokens trained on by then


@dataclass(frozen=True, slots=True, eq=False)
class RunInputs:
    """What a run trains on and into; `core_ranks` as in `LoadedDrafter`."""

    corpus: Corpus
    split: Split
    identity: Identity
    core_ranks: Tensor
    out: Path
    checkpoint_minutes: float


class TrainingRun:
    """Drives a trainer. Everything it writes goes into the output folder."""

    def __init__(self, trainer: DrafterTrainer, inputs: RunInputs) -> None:
        self.trainer = trainer
        self.started_at = now()
        self.measurements: list[Measurement] = []
        self._inputs = inputs
        self._store = CheckpointStore(inputs.out)
        self._history = History(inputs.out)
        self._probed = 0
        self._saved = monotonic()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of the same run."""
        record = checkpoint.record
        self.trainer.load(checkpoint.tensors)
        self.trainer.progress, self.trainer.position = record.progress, record.position
        self.started_at = record.started_at
        self.measurements = list(record.measurements)
        self._probed = record.probed
        self._store.step = record.progress.step
        self._history.resume(record.progress.step)

    def train(self, report: Callable[[Progress], None], stop: StopSignal) -> None:
        """Trains to the end of the plan, and saves.

        Raises:
            StoppedError: a signal came; all is saved.
            EvoSpecError: the loss is not finite, memory or disk is full. What was saved last stays.
        """

        def after_step(progress: Progress) -> None:
            self._history.add(progress)
            if stop.number is None:
                self._measure_on_the_way(progress)
            report(progress)
            if stop.number is not None:
                self.save()
                raise StoppedError(stop.number, self._stopped(progress))
            if monotonic() - self._saved >= 60 * self._inputs.checkpoint_minutes:
                self.save()

        inputs = self._inputs
        try:
            self.trainer.train(inputs.corpus, inputs.split.training, after_step)
        except DivergedError as error:
            raise EvoSpecError(f"{error}: {self._kept()}") from None
        self.save()

    def measure(self) -> AcceptanceCounts:
        """Acceptance on all held-out documents; completes `measurements`."""
        held_out = self._inputs.split.held_out
        probed = self._probed or min(_PROBED, len(held_out))
        first = self._evaluate(held_out[:probed])
        if len(held_out):
            self._note(first, share=1.0)
        self.save_history()
        return first + self._evaluate(held_out[probed:])

    def save(self) -> None:
        """Writes the checkpoint, then the drafter exported from it, then history and curve.

        Raises:
            DiskError: one of them can't be written; older ones stay whole.
        """
        checkpoint = self._checkpoint()
        self._store.save(checkpoint)
        with disk_errors(self._inputs.out, self._store.advice(checkpoint.nbytes)):
            export_drafter(self.trainer.export(), self._inputs.core_ranks, self._inputs.out)
        self.save_history()
        self._saved = monotonic()

    def save_history(self) -> None:
        out = self._inputs.out
        self._history.close_line(self.trainer.progress)
        with disk_errors(out, self._store.advice(0)):
            self._history.flush()
            if self._history.lines:
                title = f"Drafter for {self._inputs.identity.config.target_name}"
                write_curve(self._history.lines, title, out / CURVE_FILE)

    def _checkpoint(self) -> Checkpoint:
        record = CheckpointRecord(
            evospec=__version__,
            started_at=self.started_at,
            identity=self._inputs.identity,
            progress=self.trainer.progress,
            position=self.trainer.position,
            probed=self._probed,
            measurements=tuple(self.measurements),
        )
        return Checkpoint(record, self.trainer.dump())

    def _measure_on_the_way(self, progress: Progress) -> None:
        last = self.measurements[-1].share if self.measurements else 0.0
        due = [share for share in _MEASURED_AT if last < share <= progress.share]
        held_out = self._inputs.split.held_out
        if not due or not len(held_out):
            return
        if not self._probed:
            self._probed = self._affordable(progress.tokens)
        self._note(self._evaluate(held_out[: self._probed]), progress.share)

    def _affordable(self, trained: int) -> int:
        """How many conversations a measurement may have, so that measuring stays a small part of a run."""
        held_out = self._inputs.split.held_out[:_PROBED]
        lengths = np.minimum(self._inputs.corpus.lengths()[held_out], self.trainer.plan.longest)
        return max(int((np.cumsum(lengths) <= trained / _PROBE_PART).sum()), 1)

    def _note(self, counts: AcceptanceCounts, share: float) -> None:
        progress = self.trainer.progress
        length = counts.acceptance_length
        kept = [one for one in self.measurements if one.share < share]
        self.measurements = [
            *kept,
            Measurement(share=share, tokens=progress.tokens, acceptance_length=length),
        ]
        progress.held_out = length
        self._history.close_line(progress, held_out=length)

    def _evaluate(self, indices: np.ndarray) -> AcceptanceCounts:
        trainer = self.trainer
        documents = [self._inputs.corpus[int(index)] for index in indices]
        advice = training_advice(trainer.plan, trainer.drafter.config)
        with memory_errors(lambda: advice), trainer.averaged(), torch.no_grad():
            return trainer.evaluate(documents)

    def _kept(self) -> str:
        out, rate = self._inputs.out, self.trainer.plan.learning_rate
        lower = f"--learning-rate below {rate:g}"
        step = self._store.step
        if step is None:
            return f"nothing was saved before it; begin again with {lower}"
        return f"{out} keeps the drafter of step {step}; go on from it with --init {out} and {lower}"

    def _stopped(self, progress: Progress) -> str:
        return (
            f"stopped at step {progress.step} ({progress.share:.0%}): checkpoint and drafter saved in "
            f"{self._inputs.out}; go on with --resume"
        )
