"""The gate: is a candidate better than the current adapter on traces that it was not trained on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.align.acceptance import AcceptanceCounts, acceptance_length
from evospec.align.batch import TraceBatch, collate
from evospec.align.forward import draft_states
from evospec.align.loss import candidate_ids
from evospec.align.trace import Trace
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables


@dataclass(frozen=True, slots=True)
class GateReport:
    """Expected acceptance lengths of two adapters on the same held-out traces.

    `positions` counts the roots that drafts were simulated from; 0 when no held-out trace
    was long enough, and both lengths are 1.0 then.
    """

    current: float
    candidate: float
    positions: int

    @property
    def gain(self) -> float:
        return self.candidate - self.current

    def passes(self, min_gain: float) -> bool:
        """Whether the candidate adds more than `min_gain`; never without evidence."""
        return self.positions > 0 and self.gain > min_gain


@torch.no_grad()
def draft_matches(
    drafter: Drafter,
    weights: Mapping[str, Tensor],
    tables: TokenTables,
    batch: TraceBatch,
    candidates: Tensor,
    steps: int,
) -> Tensor:
    """Whether each greedy draft step, teacher-forced, names the token that the trace has.

    Args:
        weights: replace the drafter's own, by parameter name.
        candidates: token ids whose head rows are scored [candidates].

    Returns:
        bool [rows, width - steps, steps] ([rows, 0, steps] for narrower batches); at root s,
        step j stands for token s + 2 + j.
    """
    roots = max(batch.width - steps, 0)
    head = tables.head[candidates].to(drafter.fc.weight.dtype)  # [candidates, hidden]
    states = draft_states(drafter, weights, tables, batch, steps)
    matches = [
        candidates[(hidden[:, :roots] @ head.T).argmax(dim=-1)]
        == batch.token_ids[:, 2 + step : 2 + step + roots]
        for step, hidden in enumerate(states)
    ]
    return torch.stack(matches, dim=-1)


def replay_acceptance(matches: Tensor, batch: TraceBatch) -> tuple[AcceptanceCounts, int]:
    """Cycles over each window of a batch, from its first generated token on.

    Args:
        matches: as `draft_matches` returns them.

    Returns:
        Counts over all windows, and the number of roots they covered.
    """
    steps = matches.shape[-1]
    counts, positions = AcceptanceCounts(), 0
    for row, first, width in zip(matches, batch.first_scored(), batch.widths, strict=True):
        # Token first + 1 is the first generated one: the target gave it, drafting starts behind it.
        roots = row[first : max(width - steps, first)]
        counts += acceptance_length(roots)
        positions += len(roots)
    return counts, positions


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
    totals = [AcceptanceCounts(), AcceptanceCounts()]
    positions = 0
    for start in range(0, len(traces), batch_traces):
        batch = collate(traces[start : start + batch_traces], drafter.device)
        candidates = candidate_ids(core_ids, batch)
        for index, weights in enumerate((current, candidate)):
            matches = draft_matches(drafter, weights, tables, batch, candidates, steps)
            counts, covered = replay_acceptance(matches, batch)
            totals[index] += counts
        positions += covered
    return GateReport(
        current=totals[0].acceptance_length, candidate=totals[1].acceptance_length, positions=positions
    )
