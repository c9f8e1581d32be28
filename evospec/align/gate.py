"""The gate: is a candidate better than the current adapter on traces that it was not trained on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evospec.align.acceptance import AcceptanceCounts, acceptance_length
from evospec.align.batch import TraceBatch, collate
from evospec.align.forward import draft_states
from evospec.align.loss import candidate_ids, overlap
from evospec.align.trace import Trace
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Two views of how well a drafter does on held-out traces, in tokens per cycle.

    Attributes:
        greedy: cycles simulated with argmax on both sides: what greedy requests would see.
        expected: the mean over all roots of 1 + sum_j prod_{i <= j} alpha_i, where alpha_i is
            the chance sum_x min(p, q) that step i's token is accepted when sampling (Leviathan
            et al., 2211.17192, corollary 3.6). It moves with every probability, so it tells two
            adapters apart on far fewer traces than counting matches does.
    """

    greedy: float
    expected: float


@dataclass(frozen=True, slots=True)
class GateReport:
    """Two adapters on the same held-out traces.

    `positions` counts the roots that drafts were simulated from; 0 when no held-out trace
    was long enough, and all lengths are 1.0 then. `kinds` are the reports on each kind of traffic whose
    adapter has learned something, where there is one for each.
    """

    current: Acceptance
    candidate: Acceptance
    positions: int
    kinds: Mapping[int, GateReport] = field(default_factory=dict)

    @classmethod
    def over(cls, kinds: Mapping[int, GateReport], min_gain: float) -> GateReport:
        """Sums up over kinds of traffic, of which those that don't pass stay as they are; kinds weigh by
        positions."""
        total = sum(report.positions for report in kinds.values())
        currents = [(report.current, report.positions) for report in kinds.values()]
        chosen = [
            (report.candidate if report.passes(min_gain) else report.current, report.positions)
            for report in kinds.values()
        ]
        return cls(_mean(currents), _mean(chosen), total, kinds)

    @property
    def gain(self) -> float:
        return self.candidate.expected - self.current.expected

    def passes(self, min_gain: float) -> bool:
        """Whether the candidate is expected to add more than `min_gain`, in any kind of traffic where there
        are several adapters; never without evidence."""
        if self.kinds:
            return bool(self.passed(min_gain))
        return self.positions > 0 and self.gain > min_gain

    def passed(self, min_gain: float) -> list[int]:
        """Kinds of traffic whose own report passes."""
        return [kind for kind, report in self.kinds.items() if report.passes(min_gain)]


def _mean(parts: Sequence[tuple[Acceptance, int]]) -> Acceptance:
    """Weighted by positions; 1 without any."""
    total = sum(positions for _, positions in parts)
    if not total:
        return Acceptance(1.0, 1.0)
    return Acceptance(
        greedy=sum(one.greedy * positions for one, positions in parts) / total,
        expected=sum(one.expected * positions for one, positions in parts) / total,
    )


@torch.no_grad()
def draft_logits(
    drafter: Drafter,
    weights: Mapping[str, Tensor],
    tables: TokenTables,
    batch: TraceBatch,
    candidates: Tensor,
    steps: int,
) -> Tensor:
    """Logits of each teacher-forced draft step over candidate rows.

    Args:
        weights: replace the drafter's own, by parameter name.
        candidates: token ids whose head rows are scored, rising [candidates].

    Returns:
        [steps, rows, roots, candidates] with width - steps roots (none for narrower batches);
        step j at root s stands for token s + 2 + j.
    """
    roots = max(batch.width - steps, 0)
    head = tables.head[candidates].to(drafter.fc.weight.dtype)  # [candidates, hidden]
    states = draft_states(drafter, weights, tables, batch, steps)
    return torch.stack([hidden[:, :roots] @ head.T for hidden in states])


def draft_matches(logits: Tensor, batch: TraceBatch, candidates: Tensor) -> Tensor:
    """Whether each draft step's best token is the one that the trace has, bool [rows, roots, steps]."""
    steps, _, roots, _ = logits.shape
    best = candidates[logits.argmax(dim=-1)]  # [steps, rows, roots]
    own = [batch.token_ids[:, 2 + step : 2 + step + roots] for step in range(steps)]
    return (best == torch.stack(own)).permute(1, 2, 0)


def acceptance_chances(logits: Tensor, batch: TraceBatch, candidates: Tensor) -> Tensor:
    """Chance that each sampled draft token is accepted, see `overlap` [steps, rows, roots]."""
    steps, _, roots, _ = logits.shape
    columns = torch.searchsorted(candidates, batch.top_ids)  # [rows, width, k]
    chances = []
    for step in range(steps):
        place = slice(step + 1, step + 1 + roots)
        chances.append(overlap(logits[step], columns[:, place], batch.top_logprobs[:, place]))
    return torch.stack(chances)


def replay_acceptance(matches: Tensor, batch: TraceBatch) -> tuple[AcceptanceCounts, int]:
    """Cycles over each window of a batch, from its first generated token on.

    Args:
        matches: as `draft_matches` returns them.

    Returns:
        Counts over all windows, and the number of roots they covered.
    """
    counts, positions = AcceptanceCounts(), 0
    for row, chosen in zip(matches, scored_roots(batch, matches.shape[-1]), strict=True):
        roots = row[chosen]
        counts += acceptance_length(roots)
        positions += len(roots)
    return counts, positions


def scored_roots(batch: TraceBatch, steps: int) -> list[slice]:
    """Roots of each row whose whole draft lies in generated text.

    Token first + 1 is the first generated one: the target gave it, drafting starts behind it.
    """
    return [
        slice(first, max(width - steps, first))
        for first, width in zip(batch.first_scored(), batch.widths, strict=True)
    ]


def judge(
    drafter: Drafter,
    current: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    tables: TokenTables,
    core_ids: Tensor,
    traces: Sequence[Trace],
    *,
    steps: int,
    batch_traces: int,
) -> GateReport:
    """Compares two sets of weights by the cycles they would have needed for the same traces.

    Args:
        drafter: gives every weight that the two do not name.
        core_ids: token ids scored in every batch, beside the batch's own [core].
        steps: draft length.
        batch_traces: traces per forward pass.
    """
    totals = [_Total(), _Total()]
    for start in range(0, len(traces), batch_traces):
        batch = collate(traces[start : start + batch_traces], drafter.device)
        candidates = candidate_ids(core_ids, batch)
        for total, weights in zip(totals, (current, candidate), strict=True):
            logits = draft_logits(drafter, weights, tables, batch, candidates, steps)
            total.add(logits, batch, candidates)
    return GateReport(totals[0].acceptance(), totals[1].acceptance(), totals[0].positions)


@dataclass(slots=True)
class _Total:
    """Sums over batches for one set of weights."""

    counts: AcceptanceCounts = field(default_factory=AcceptanceCounts)
    expected: float = 0.0
    positions: int = 0

    def add(self, logits: Tensor, batch: TraceBatch, candidates: Tensor) -> None:
        counts, positions = replay_acceptance(draft_matches(logits, batch, candidates), batch)
        self.counts += counts
        self.positions += positions
        lengths = 1 + acceptance_chances(logits, batch, candidates).cumprod(dim=0).sum(dim=0)  # [rows, roots]
        for row, roots in zip(lengths, scored_roots(batch, logits.shape[0]), strict=True):
            self.expected += float(row[roots].sum())

    def acceptance(self) -> Acceptance:
        mean = self.expected / self.positions if self.positions else 1.0
        return Acceptance(greedy=self.counts.acceptance_length, expected=mean)
