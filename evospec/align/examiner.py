"""Judges what students have learned against what is published, on held-out traces."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evospec.align.gate import GateReport, judge
from evospec.align.lora import merge_deltas
from evospec.align.replay import ReplayBuffer
from evospec.align.student import Student
from evospec.align.students import published
from evospec.config import AlignmentConfig
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables


class Examiner:
    """
    Args:
        drafter: the frozen base, float32.
        core_ids: token ids scored in every batch [core].
        replay: where held-out traces are.
        steps: draft steps per cycle.
    """

    __slots__ = ("_config", "_core_ids", "_drafter", "_replay", "_steps", "_tables")

    def __init__(
        self,
        config: AlignmentConfig,
        drafter: Drafter,
        tables: TokenTables,
        core_ids: Tensor,
        replay: ReplayBuffer,
        steps: int,
    ) -> None:
        self._config = config
        self._drafter = drafter
        self._tables = tables
        self._core_ids = core_ids
        self._replay = replay
        self._steps = steps

    def examine(self, students: Sequence[Student], current: AdapterWeights) -> GateReport:
        """A student of all traffic; or those of kinds that have learned something new, each on traces of its
        kind."""
        if not self._config.adapters:
            (student,) = students
            return self._judge(student, current)
        reports = {
            kind: self._judge(student, current) for kind, student in enumerate(students) if student.moved
        }
        return GateReport.over(reports, self._config.min_gain)

    def _judge(self, student: Student, current: AdapterWeights) -> GateReport:
        report = judge(
            self._drafter,
            merge_deltas(self._drafter, published(current, student.kind)),
            merge_deltas(self._drafter, student.learned()),
            self._tables,
            self._core_ids,
            self._replay.sample_held_out(self._config.gate_traces, student.kind),
            steps=self._steps,
            batch_traces=self._config.batch_traces,
        )
        student.judged(better=report.passes(self._config.min_gain))
        return report
