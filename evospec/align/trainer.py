"""Online alignment: steps on replayed traces, and the decision to publish."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evospec.align.adaptation import adaptation_of
from evospec.align.batch import collate
from evospec.align.cadence import Cadence
from evospec.align.gate import GateReport, judge
from evospec.align.lora import merge_adapter
from evospec.align.objective import Objective
from evospec.align.optimiser import Optimiser
from evospec.align.replay import Admission, ReplayBuffer
from evospec.align.trace import Trace
from evospec.align.trace_codec import decode, encode
from evospec.align.trace_limits import TraceLimits
from evospec.align.training_state import TrainingState
from evospec.config import AlignmentConfig
from evospec.errors import EvoSpecError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables
from evospec.vocab.live_core import LiveCore
from evospec.vocab.tenants import TenantIndexes


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimiser step.

    Attributes:
        loss: KL in nats, before the step.
        grad_norm: before clipping.
        seconds: wall time.
        traces: traces in the batch.
        applied: False when loss or gradients were not finite: the weights did not move.
    """

    loss: float
    grad_norm: float
    seconds: float
    traces: int
    applied: bool


@dataclass(slots=True)
class TrainerCounts:
    """Monotonic counters; those of the traces are `AlignmentTrainer.replay.counts`."""

    steps: int = 0
    skipped_steps: int = 0
    refused_traces: int = 0


class AlignmentTrainer:
    """Trains a drafter's adapter on traces, without the target.

    It holds a frozen float32 copy of the drafter and the target's token tables, of which
    each batch reads only the rows it needs. Decoupled weight decay (Loshchilov & Hutter,
    1711.05101) towards the base is the proximal term: each step pulls what is trained back to it by
    learning_rate * weight_decay of the way; of a LoRA delta, both matrices.

    Single-threaded. A version is made between two steps: `candidate`, `gate`, then
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
        self._tables = tables
        self._core_ids = core_ids.to(drafter.device)
        self._limits = limits
        self._core = core
        self._successors = successors
        self._table_bytes = int(config.successor_mb * 2**20)
        self._gate_steps = max(draft_length, 1)
        _check_positions(drafter, limits, max(self._gate_steps, config.test_time_steps))
        self._adaptation = adaptation_of(config, self._drafter)
        self._parameters = self._adaptation.named_parameters()
        self._objective = Objective(config, self._drafter, tables, self._core_ids)
        self._optimiser = Optimiser(config, self._parameters)
        self._current = AdapterWeights(0, {})
        self._candidate: AdapterWeights | None = None
        self.replay = ReplayBuffer(
            int(config.replay_mb * 2**20), config.holdout, config.seed, config.replay_clusters
        )
        self.cadence = Cadence(config)
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
        """Numbers that a step moves."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def ready(self) -> bool:
        """Whether enough traces are there to train on, and any to judge by."""
        training, held_out = self.replay.training_traces, self.replay.held_out_traces
        return min(training, held_out) > 0 and training + held_out >= self._config.min_traces

    @property
    def due(self) -> bool:
        """Whether traces have paid for a step that can be made."""
        return self.ready and self.cadence.earned

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
        self.cadence.observe(checked)
        admission = self.replay.add(checked)
        if admission in (Admission.TRAINING, Admission.HELD_OUT):
            self._count(checked)
            self.cadence.admitted()
        return admission

    def step(self) -> TrainingStep:
        """One optimiser step on a sample of the training traces.

        When loss or gradients are not finite, neither weights nor optimiser move, and the
        batch leaves the replay buffer: one bad trace must not spoil every batch it is in.

        Raises:
            RuntimeError: there is no training trace.
        """
        started = time.perf_counter()
        self.cadence.stepped()
        traces = self.replay.sample(self._config.batch_traces)
        if not traces:
            raise RuntimeError("no training traces: call step only when ready")
        self._optimiser.clear()
        loss = self._objective.loss(self._adaptation.merged(), collate(traces, self._drafter.device))
        loss.backward()
        value = loss.item()
        norm = self._optimiser.clip()
        applied = math.isfinite(value) and math.isfinite(norm)
        if applied:
            self._adaptation.pull(self._optimiser.rate * self._config.weight_decay)
            self._optimiser.step()
            self._candidate = None
            self.counts.steps += 1
        else:
            self.replay.discard(traces)
            self.counts.skipped_steps += 1
        return TrainingStep(
            loss=value,
            grad_norm=norm,
            seconds=time.perf_counter() - started,
            traces=len(traces),
            applied=applied,
        )

    def candidate(self, version: int) -> AdapterWeights:
        """The weights as they are now, under the version they would be published as."""
        ranks = None if self._core is None else torch.from_numpy(self._core.ranks())
        tables = {} if self._successors is None else self._successors.tables(self._table_bytes)
        self._candidate = replace(self._learned(version), core_ranks=ranks, successors=tables)
        return self._candidate

    def gate(self) -> GateReport:
        """Judges the weights as they are now against the current adapter, on held-out traces."""
        report = judge(
            self._drafter,
            merge_adapter(self._drafter, self._current),
            merge_adapter(self._drafter, self._learned(self._current.version)),
            self._tables,
            self._core_ids,
            self.replay.sample_held_out(self._config.gate_traces),
            steps=self._gate_steps,
            batch_traces=self._config.batch_traces,
        )
        self.cadence.judged(better=report.passes(self._config.min_gain))
        return report

    def accept(self) -> None:
        """The last candidate was published: it becomes the current adapter.

        Raises:
            RuntimeError: no candidate was made since the last step.
        """
        if self._candidate is None:
            raise RuntimeError("accept without a candidate made since the last step")
        self._current = self._candidate
        self._candidate = None

    def renumber(self, version: int) -> None:
        """The current adapter was published again, as `version`."""
        self._current = replace(self._current, version=version)

    def restore(self, adapter: AdapterWeights) -> None:
        """Continues from a published version with fresh moments; one without tensors is the base.

        Raises:
            WireError: it does not fit the drafter or the configured rank. Nothing is changed then.
        """
        self._adaptation.load(adapter.scaled(1 / self._config.blend))
        self._optimiser = Optimiser(self._config, self._parameters)
        if self._core is not None and adapter.core_ranks is not None:
            self._core.begin_with(adapter.core_ranks.numpy())
        if self._successors is not None:
            self._successors.begin_with(adapter.successors)
        self._current = adapter
        self._candidate = None

    def training_state(self, version: int) -> TrainingState:
        """What another trainer needs beside the adapter of `version` to go on from it as this one does."""
        counts = self.counts
        moments = self._optimiser.moments()
        return TrainingState(version, counts.steps, counts.skipped_steps, self.replay.summary(), moments)

    def resume(self, blob: bytes) -> None:
        """Goes on as the trainer whose training state this is; call it after `restore` of that version.

        Moments are its; counters go on from its. With the same traces the next step is the
        same bit for bit, provided that alpha / rank and blend, by which adapters are scaled, are powers of
        two.

        Raises:
            WireError: not a training state of the current version and these parameters. Nothing is
                changed then.
        """
        state = TrainingState.from_bytes(blob, {name: p.shape for name, p in self._parameters.items()})
        if state.version != self._current.version:
            raise WireError(
                f"training state is that of version {state.version}, not of {self._current.version}"
            )
        self._optimiser.resume(state.moments)
        self.counts.steps += state.steps
        self.counts.skipped_steps += state.skipped_steps
        self.replay.resume(state.replay)

    def _learned(self, version: int) -> AdapterWeights:
        """What a version made now carries of the weights as they are."""
        return self._adaptation.export(version).scaled(self._config.blend)

    def _count(self, trace: Trace) -> None:
        if self._core is not None:
            self._core.learn(trace.token_ids[1:][trace.generated])
        if self._successors is not None:
            self._successors.of(trace.tenant).learn(trace.token_ids, first=trace.first_new)


def _check_positions(drafter: Drafter, limits: TraceLimits, steps: int) -> None:
    needed, available = limits.max_positions + steps, drafter.config.max_positions
    if needed > available:
        raise EvoSpecError(
            f"traces of {limits.max_positions} positions need a drafter with {needed}, this one has "
            f"{available}: set alignment.trace_positions to at most {available - steps}"
        )
