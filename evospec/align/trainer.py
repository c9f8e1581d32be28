"""Online alignment: steps on replayed traces, and the decision to publish."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from evospec.align.examiner import Examiner
from evospec.align.gate import GateReport
from evospec.align.objective import Objective
from evospec.align.replay import Admission, ReplayBuffer
from evospec.align.student import Student, TrainingStep
from evospec.align.students import Students
from evospec.align.trace import Trace
from evospec.align.trace_codec import decode, encode
from evospec.align.trace_limits import TraceLimits
from evospec.align.training_state import TrainingState
from evospec.align.version_tables import VersionTables
from evospec.config import AlignmentConfig
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables
from evospec.vocab.live_core import LiveCore
from evospec.vocab.tenants import TenantIndexes


@dataclass(slots=True)
class TrainerCounts:
    """Monotonic counters; those of the traces are `AlignmentTrainer.replay.counts`."""

    steps: int = 0
    skipped_steps: int = 0
    refused_traces: int = 0


class AlignmentTrainer:
    """Trains a drafter's adapter on traces, without the target; or one for each kind of traffic, see
    `Students`.

    It holds a frozen float32 copy of the drafter and the target's token tables, of which
    each batch reads only the rows it needs. Decoupled weight decay (Loshchilov & Hutter,
    1711.05101) towards the base is the proximal term: each step pulls what is trained back to it by
    learning_rate * weight_decay of the way; of a LoRA delta, both matrices.

    Single-threaded. A version is made between two steps: `gate`, `candidate`, then
    `accept` once it is published.
    """

    def __init__(
        self,
        config: AlignmentConfig,
        drafter: Drafter,
        tables: TokenTables,
        core_ids: Tensor,
        limits: TraceLimits,
        *,
        draft_length: int,
        core: LiveCore | None = None,
        successors: TenantIndexes | None = None,
    ) -> None:
        """
        Args:
            drafter: the base; copied, never changed.
            core_ids: token ids scored in every batch, as the engines' core [core].
            limits: what incoming traces must look like.
            draft_length: draft steps per cycle that the gate simulates.
            core: counts what traces hold, for versions to bring a core; None: they bring none.
            successors: counts what follows what in them, for versions to bring tables of it; likewise.

        Raises:
            EvoSpecError: the drafter has fewer positions than a trace.
        """
        self._config = config
        self._drafter = copy.deepcopy(drafter).float().requires_grad_(False)
        core_ids = core_ids.to(drafter.device)
        self._limits = limits
        self._brought = VersionTables(core, successors, int(config.successor_mb * 2**20))
        gate_steps = max(draft_length, 1)
        limits.check_room(drafter.config.max_positions, max(gate_steps, config.test_time_steps))
        self._objective = Objective(config, self._drafter, tables, core_ids)
        self._current = AdapterWeights(0, {})
        self._candidate: AdapterWeights | None = None
        self._carried: Sequence[Student] = ()  # whose learning the candidate carries
        clusters = max(config.replay_clusters, config.adapters + 1)
        self.replay = ReplayBuffer(int(config.replay_mb * 2**20), config.holdout, config.seed, clusters)
        self._students = Students(config, self._drafter, self.replay)
        self._examiner = Examiner(config, self._drafter, tables, core_ids, self.replay, gate_steps)
        self.counts = TrainerCounts()

    @property
    def drafter(self) -> Drafter:
        """The base drafter, which no step changes."""
        return self._drafter

    @property
    def limits(self) -> TraceLimits:
        """What incoming traces must look like."""
        return self._limits

    @property
    def current(self) -> AdapterWeights:
        """The adapter that candidates must beat; version 0 without tensors is the base."""
        return self._current

    @property
    def trained_parameters(self) -> int:
        """Numbers that steps move."""
        return sum(shape.numel() for each in self._students.shapes for shape in each.values())

    @property
    def ready(self) -> bool:
        """Whether enough traces are there to train on, and any to judge by."""
        return self._students.ready

    @property
    def due(self) -> bool:
        """Whether traces have paid for a step that can be made."""
        return self._students.due

    def add(self, trace: Trace | bytes) -> Admission:
        """Admits a trace to the replay buffer, or drops it as degenerate; both are counted.

        A `Trace` goes through the codec as well: one set of checks, and the buffer owns
        its memory whatever the arrays were views of.

        Raises:
            WireError: not a trace for this drafter; counted.
        """
        try:
            checked = decode(trace if isinstance(trace, bytes) else encode(trace), self._limits)
        except WireError:
            self.counts.refused_traces += 1
            raise
        admission = self._students.add(checked)
        if admission in (Admission.TRAINING, Admission.HELD_OUT):
            self._brought.learn(checked)
        return admission

    def step(self) -> TrainingStep:
        """One optimiser step on a sample of the training traces, of one kind where each has an adapter.

        When loss or gradients are not finite, neither weights nor optimiser move, and the
        batch leaves the replay buffer: one bad trace must not spoil every batch it is in.

        Raises:
            RuntimeError: there is no training trace that anybody learns from.
        """
        student = self._students.next()
        if student is None:
            raise RuntimeError("no training traces: call step only when ready")
        traces = self.replay.sample(self._config.batch_traces, student.kind)
        step = student.step(self._objective, traces)
        if step.applied:
            self._candidate = None
            self.counts.steps += 1
        else:
            self.replay.discard(traces)
            self.counts.skipped_steps += 1
        return step

    def candidate(self, version: int, report: GateReport | None = None) -> AdapterWeights:
        """The weights as they are now, under the version they would be published as.

        Args:
            report: of the gate; adapters for kinds of traffic that did not pass stay as they are in the
                current version. None: all are what was learned.
        """
        self._carried = tuple(self._students.all)
        if report is not None and report.kinds:
            passed = report.passed(self._config.min_gain)
            self._carried = tuple(student for student in self._carried if student.kind in passed)
        learned = self._students.learned(version, self._current, self._carried)
        self._candidate = self._brought.added_to(learned)
        return self._candidate

    def gate(self) -> GateReport:
        """Judges the weights as they are now against the current adapter, on held-out traces; where each kind
        of traffic has an adapter, those that have learned something, on traces of their kind."""
        return self._examiner.examine(self._students.all, self._current)

    def accept(self) -> None:
        """The last candidate was published: it becomes the current adapter.

        Raises:
            RuntimeError: no candidate was made since the last step.
        """
        if self._candidate is None:
            raise RuntimeError("accept without a candidate made since the last step")
        self._current = self._candidate
        self._candidate = None
        for student in self._carried:
            student.carried()

    def renumber(self, version: int) -> None:
        """The current adapter was published again, as `version`."""
        self._current = replace(self._current, version=version)

    def restore(self, adapter: AdapterWeights) -> None:
        """Continues from a published version with fresh moments; one without tensors is the base.

        Raises:
            WireError: it does not fit the drafter, the configured rank or the number of adapters. Nothing
                is changed then.
        """
        self._students.begin_with(adapter)
        self._brought.begin_with(adapter)
        self._current = adapter
        self._candidate = None

    def training_state(self, version: int) -> TrainingState:
        """What another trainer needs beside the adapter of `version` to go on from it as this one does."""
        counts, carried = self.counts, () if self._candidate is None else self._carried
        return TrainingState(
            version,
            counts.steps,
            counts.skipped_steps,
            self.replay.summary(),
            self._students.moments,
            self._students.unpublished(carried),
            self._students.credits,
            self._students.cut(carried),
        )

    def resume(self, blob: bytes) -> None:
        """Goes on as the trainer whose training state this is; call it after `restore` of that version.

        Moments are its; counters go on from its. With the same traces the next step is the
        same bit for bit, provided that alpha / rank and blend, by which adapters are scaled, are powers of
        two.

        Raises:
            WireError: not a training state of the current version and these parameters. Nothing is
                changed then.
        """
        state = TrainingState.from_bytes(blob, self._students.shapes)
        if state.version != self._current.version:
            raise WireError(
                f"training state is that of version {state.version}, not of {self._current.version}"
            )
        self._students.resume(state)
        self.counts.steps += state.steps
        self.counts.skipped_steps += state.skipped_steps
        self.replay.resume(state.replay)
