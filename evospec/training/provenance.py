"""Where a drafter comes from and how good it is: provenance.json in its folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from evospec.bench.results import Machine
from evospec.training.checkpoint import Initial, Measurement, Record
from evospec.training.disk import write_text
from evospec.training.manifest import CorpusManifest
from evospec.training.plan import TrainingPlan

FILE = "provenance.json"
_HALF = (0.4, 0.6)  # share at which a measurement counts as half of the run


class TrainingResult(Record):
    """What came out.

    Attributes:
        acceptance_length: tokens per cycle of greedy chains as long as the training's, teacher-forced
            on held-out conversations; None when the corpus was too small to hold any out.
        acceptance_by_step: share of those cycles whose draft was accepted to this step or further.
        held_out: conversations it was measured on.
        held_out_kind: whether the target wrote them, or they are text of the corpus.
        accuracy_by_step: on training text, over the last steps.
        tokens_per_s: of the optimiser steps; compiling, evaluation and checkpoints left out.
        peak_share: of the device's bfloat16 peak (see `evospec.training.throughput`); None when
            that is not known.
        measurements: on the first held-out conversations, on the way and at the end.
    """

    acceptance_length: float | None
    acceptance_by_step: tuple[float, ...]
    held_out: int
    held_out_kind: Literal["on-policy", "corpus"]
    accuracy_by_step: tuple[float, ...]
    corpus_tokens: int
    trained_tokens: int
    optimizer_steps: int
    minutes: float
    tokens_per_s: float
    peak_share: float | None
    measurements: tuple[Measurement, ...]

    @property
    def half_way(self) -> Measurement | None:
        """The measurement at half of the run, when there is one."""
        halves = [one for one in self.measurements if _HALF[0] <= one.share <= _HALF[1]]
        return halves[0] if halves else None

    @property
    def last_doubling(self) -> float | None:
        """What the second half of the run added to the acceptance length of the same conversations.

        The learning rate falls most in that half, so a longer run gains less than this by as much
        as the decay alone gives.
        """
        half = self.half_way
        if half is None or self.measurements[-1].share < 1.0:
            return None
        return self.measurements[-1].acceptance_length - half.acceptance_length


class TargetRecord(Record):
    """The target; `licence` where EvoSpec knows it."""

    name: str
    fingerprint: str
    tokenizer: str
    licence: str | None


class Provenance(Record):
    schema_version: Literal[1] = 1
    evospec: str
    commit: str
    machine: Machine
    device: Literal["cpu", "cuda"]
    dtype: str
    target: TargetRecord
    data: CorpusManifest
    training: TrainingPlan
    parameters: int
    initial: Initial | None
    result: TrainingResult
    started_at: str
    finished_at: str

    def write(self, folder: Path) -> None:
        write_text(folder / FILE, self.model_dump_json(indent=2) + "\n")


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
