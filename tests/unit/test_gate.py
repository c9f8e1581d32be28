"""The gate: cycles simulated on held-out traces, against drafting one token at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evospec.align.acceptance import AcceptanceCounts, acceptance_length
from evospec.align.batch import collate
from evospec.align.gate import (
    Acceptance,
    GateReport,
    acceptance_chances,
    draft_logits,
    draft_matches,
    judge,
    replay_acceptance,
)
from evospec.align.loss import candidate_ids
from evospec.align.trace import Trace
from evospec.models.draft_body import DraftBody
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import Window
from evospec.models.tables import TokenTables
from tests.unit.align_tiny import CORE, learnable_trace, random_trace, tiny_drafter, tiny_tables

CPU = torch.device("cpu")
STEPS = 3


def test_docstring_example() -> None:
    matches = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 0]], dtype=torch.bool)
    assert acceptance_length(matches) == AcceptanceCounts(cycles=2, tokens=5)


def test_no_roots_are_no_cycles() -> None:
    counts = acceptance_length(torch.zeros(0, 4, dtype=torch.bool))
    assert counts == AcceptanceCounts(0, 0)
    assert counts.acceptance_length == 1.0


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_bounds_are_one_and_steps_plus_one(steps: int) -> None:
    assert acceptance_length(torch.zeros(20, steps, dtype=torch.bool)).acceptance_length == 1.0
    assert acceptance_length(torch.ones(20, steps, dtype=torch.bool)).acceptance_length == steps + 1


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=30))
def test_cycles_cover_the_text_without_gaps(rows: list[list[bool]]) -> None:
    counts = acceptance_length(torch.tensor(rows, dtype=torch.bool).reshape(len(rows), 3))
    root = cycles = tokens = 0
    while root < len(rows):
        accepted = [*rows[root], False].index(False)
        cycles, tokens, root = cycles + 1, tokens + accepted + 1, root + accepted + 1
    assert counts == AcceptanceCounts(cycles, tokens)


def test_counts_add_as_counts() -> None:
    assert AcceptanceCounts(2, 5) + AcceptanceCounts(1, 1) == AcceptanceCounts(3, 6)


@torch.inference_mode()
def drafted_tokens(
    drafter: Drafter, tables: TokenTables, trace: Trace, root: int, candidates: Tensor
) -> list[int]:
    """Drafts from `root` as an engine does: pairs up to it into the cache, then its own outputs."""
    batch = collate([trace], CPU)
    cache = drafter.new_cache(1, trace.width + STEPS)
    pairs = batch.token_ids[:, 1 : root + 2]
    window = Window.of([0], root + 1, CPU)
    body = DraftBody(drafter)
    hidden = body(drafter.fuse(batch.features[:, : root + 1]), tables.embed(pairs), window, cache)[:, -1:]
    tokens: list[int] = []
    for step in range(STEPS):
        logits = drafter.norm(hidden[0, 0]) @ tables.head[candidates].T
        tokens.append(int(candidates[logits.argmax()]))
        embedding = tables.embed(torch.tensor([tokens[-1:]]))
        hidden = body(hidden, embedding, Window.of([root + 1 + step], 1, CPU), cache)
    return tokens


def agreeable(trace: Trace, drafter: Drafter, tables: TokenTables) -> Trace:
    """The trace with its tokens changed so that the drafter is right now and then."""
    candidates = candidate_ids(CORE, collate([trace], CPU))
    tokens = trace.token_ids.copy()
    for root in range(2, trace.width - STEPS):
        if root % 5 != 4:
            trace = replace(trace, token_ids=tokens)
            tokens = tokens.copy()
            tokens[root + 2] = drafted_tokens(drafter, tables, trace, root, candidates)[0]
    return replace(trace, token_ids=tokens)


def test_simulation_equals_drafting_from_each_root() -> None:
    drafter, tables = tiny_drafter(), tiny_tables()
    traces = [agreeable(random_trace(seed, width=16 + seed, context=3), drafter, tables) for seed in range(3)]
    batch = collate(traces, CPU)
    candidates = candidate_ids(CORE, batch)
    expected, positions = AcceptanceCounts(), 0
    for trace in traces:
        root = int(np.flatnonzero(trace.generated)[0])
        last = trace.width - 1 - STEPS
        positions += last + 1 - root
        while root <= last:
            drafted = drafted_tokens(drafter, tables, trace, root, candidates)
            actual = trace.token_ids[root + 2 : root + 2 + STEPS].tolist()
            accepted = [*map(int.__eq__, drafted, actual), False].index(False)
            expected += AcceptanceCounts(1, accepted + 1)
            root += accepted + 1
    matches = draft_matches(draft_logits(drafter, {}, tables, batch, candidates, STEPS), batch, candidates)
    assert replay_acceptance(matches, batch) == (expected, positions)
    assert expected.acceptance_length > 1.2


def test_unscored_context_and_short_windows_yield_no_cycles() -> None:
    traces = [random_trace(0, width=3, context=0), random_trace(1, width=12, context=12)]
    for batch in (collate(traces, CPU), collate(traces[:1], CPU)):
        matches = draft_matches(
            draft_logits(tiny_drafter(), {}, tiny_tables(), batch, CORE, STEPS), batch, CORE
        )
        assert matches.shape == (len(batch.widths), max(batch.width - STEPS, 0), STEPS)
        assert replay_acceptance(matches, batch) == (AcceptanceCounts(), 0)


def test_judge_scores_both_sides_on_the_same_positions() -> None:
    drafter, tables = tiny_drafter(), tiny_tables()
    traces = [agreeable(random_trace(seed), drafter, tables) for seed in range(5)]
    broken = {"fc.weight": torch.zeros_like(drafter.fc.weight), "norm.weight": torch.zeros(32)}
    report = judge(drafter, broken, {}, tables, CORE, traces, steps=STEPS, batch_traces=2)
    assert report.positions == sum(trace.width - STEPS - 4 for trace in traces)
    assert report.candidate.greedy > report.current.greedy
    swapped = judge(drafter, {}, broken, tables, CORE, traces, steps=STEPS, batch_traces=2)
    assert (swapped.current, swapped.candidate) == (report.candidate, report.current)
    assert report.gain == -swapped.gain != 0
    assert report.passes(0.0) != swapped.passes(0.0)


def test_chances_are_the_overlap_of_both_distributions() -> None:
    """Against a loop over tokens, with a top-k that holds all of the target's mass."""
    drafter, tables = tiny_drafter(), tiny_tables()
    trace = random_trace(3)
    ids = trace.top_ids[:, :2].copy()
    shares = np.log(np.array([0.75, 0.25], dtype=np.float16))
    trace = replace(trace, top_ids=ids, top_logprobs=np.tile(shares, (trace.width, 1)).astype(np.float16))
    batch = collate([trace], CPU)
    candidates = candidate_ids(CORE, batch)
    logits = draft_logits(drafter, {}, tables, batch, candidates, STEPS)
    chances = acceptance_chances(logits, batch, candidates)
    for step in range(STEPS):
        for root in range(logits.shape[2]):
            q = dict(zip(candidates.tolist(), logits[step, 0, root].softmax(-1).tolist(), strict=True))
            best, second = ids[root + step + 1].tolist()
            overlap = min(0.75, q[best]) + min(0.25, q[second])
            assert chances[step, 0, root].item() == pytest.approx(overlap, abs=2e-3)


def test_judge_leaves_the_drafter_as_it_was() -> None:
    drafter = tiny_drafter()
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    other = {"fc.weight": torch.zeros_like(drafter.fc.weight)}
    judge(drafter, other, {}, tiny_tables(), CORE, [learnable_trace(0)], steps=2, batch_traces=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in drafter.state_dict().items())


def test_passing_needs_evidence_and_more_than_the_margin() -> None:
    low, high = Acceptance(1.6, 1.5), Acceptance(1.4, 1.75)  # the expectation decides
    assert GateReport(current=low, candidate=high, positions=10).passes(0.125)
    assert not GateReport(current=low, candidate=high, positions=10).passes(0.25)
    assert not GateReport(current=low, candidate=low, positions=10).passes(0.0)
    assert not GateReport(current=low, candidate=high, positions=0).passes(0.0)
    nothing = judge(tiny_drafter(), {}, {}, tiny_tables(), CORE, [], steps=STEPS, batch_traces=2)
    assert nothing == GateReport(Acceptance(1.0, 1.0), Acceptance(1.0, 1.0), positions=0)
    assert not nothing.passes(-1.0)
