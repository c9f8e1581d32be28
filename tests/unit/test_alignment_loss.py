"""The alignment loss, against slow references over the full vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evospec.align.batch import TraceBatch, collate
from evospec.align.forward import draft_states
from evospec.align.loss import alignment_loss, candidate_ids, topk_tail_kl
from evospec.models.unroll import unroll
from tests.unit.align_tiny import CORE, NO_PAST, VOCAB, random_trace, tiny_drafter, tiny_tables

CPU = torch.device("cpu")


def bucketed_kl(target: Tensor, drafter: Tensor, top: Tensor) -> float:
    """KL over "each of `top`, or anything else", from full distributions [vocab], in float64."""
    rest = torch.ones(len(target), dtype=torch.bool)
    rest[top] = False
    p = torch.cat((target[top], target[rest].sum()[None])).double()
    q = torch.cat((drafter[top], drafter[rest].sum()[None])).double()
    seen = p > 0
    return float((p[seen] * (p[seen] / q[seen]).log()).sum())


def full_kl(target: Tensor, drafter: Tensor) -> float:
    return float((target.double() * (target.double() / drafter.double()).log()).sum())


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 11), st.floats(0.1, 8.0))
def test_equals_bucketed_kl_and_never_exceeds_the_full_one(seed: int, k: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    target, logits = torch.randn(2, 5, 12, generator=generator) * spread
    log_p = target.log_softmax(-1)
    top_logprobs, top = log_p.topk(k, dim=-1)
    kl = topk_tail_kl(logits, top, top_logprobs)
    for row in range(5):
        p, q = log_p[row].exp(), logits[row].softmax(-1)
        assert float(kl[row]) == pytest.approx(bucketed_kl(p, q, top[row]), abs=2e-4)
        assert -1e-5 <= float(kl[row]) <= full_kl(p, q) + 2e-4


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_equals_full_kl_when_the_top_k_covers_everything(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target, logits = torch.randn(2, 3, 9, generator=generator) * 3
    top_logprobs, top = target.log_softmax(-1).topk(9, dim=-1)
    kl = topk_tail_kl(logits, top, top_logprobs)
    for row in range(3):
        assert float(kl[row]) == pytest.approx(
            full_kl(target[row].softmax(-1), logits[row].softmax(-1)), abs=1e-4
        )


def test_is_zero_exactly_when_the_drafter_agrees() -> None:
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    top_logprobs, top = logits.log_softmax(-1).topk(5, dim=-1)
    assert topk_tail_kl(logits, top, top_logprobs).abs().max() < 1e-6
    assert topk_tail_kl(logits + torch.arange(20) * 0.1, top, top_logprobs).min() > 1e-3


def test_gradients_match_finite_differences_and_stay_finite() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    top_logprobs, top = torch.randn(3, 7, generator=generator, dtype=torch.float64).log_softmax(-1).topk(3)
    assert torch.autograd.gradcheck(lambda z: topk_tail_kl(z, top, top_logprobs), (logits,))
    assert torch.autograd.gradcheck(lambda z: topk_tail_kl(z[:, :3], top.argsort(), top_logprobs), (logits,))


@pytest.mark.parametrize(
    "logprobs", [[0.0, -60_000.0], [-60_000.0, -60_000.0], [-0.69, -0.69], [0.0, -0.001]]
)
def test_extreme_targets_give_finite_losses_and_gradients(logprobs: list[float]) -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0, 3.0]]).requires_grad_()
    for width in (2, 4):
        loss = topk_tail_kl(logits[:, :width], torch.tensor([[0, 1]]), torch.tensor([logprobs])).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def slow_loss(batch: TraceBatch, states: list[Tensor], head: Tensor, candidates: Tensor) -> float:
    """Position by position, from the definitions."""
    total = weight = 0.0
    for step, hidden in enumerate(states):
        terms = []
        for row, width in enumerate(batch.widths):
            for root in range(width):
                place = root + 1 + step  # position whose distribution step predicts
                if place >= width or not batch.scored[row, place]:
                    continue
                q = (head[candidates] @ hidden[row, root]).softmax(-1)
                ids = batch.top_ids[row, place]
                p = torch.zeros(len(candidates))
                columns = torch.tensor([int((candidates == token).nonzero()) for token in ids])
                p[columns] = batch.top_logprobs[row, place].exp()
                rest = torch.ones(len(candidates), dtype=torch.bool)
                rest[columns] = False
                p[rest] = (1 - p.sum()) / rest.sum()
                terms.append(bucketed_kl(p / p.sum(), q, columns))
        if terms:
            total += 0.8**step * sum(terms) / len(terms)
            weight += 0.8**step
    return total / weight


def test_batch_loss_agrees_with_the_definition() -> None:
    traces = [
        random_trace(0, width=9, context=3),
        random_trace(1, width=14, context=0),
        random_trace(2, 5, 2),
    ]
    batch, tables = collate(traces, CPU), tiny_tables()
    states = draft_states(tiny_drafter(), {}, tables, batch, 3)
    candidates = candidate_ids(CORE, batch)
    loss = alignment_loss(states, batch, tables.head[candidates], candidates)
    assert float(loss) == pytest.approx(slow_loss(batch, states, tables.head, candidates), rel=1e-4)


def test_full_candidates_make_it_the_full_vocabulary_loss() -> None:
    """With every token a candidate and nothing beyond the top-k, no approximation is left."""
    batch, tables = collate([random_trace(0, width=6, context=1)], CPU), tiny_tables()
    generator = torch.Generator().manual_seed(3)
    log_p = torch.randn(1, 6, VOCAB, generator=generator).log_softmax(-1)
    top_logprobs, top_ids = log_p.topk(VOCAB, dim=-1)
    full = replace(batch, top_ids=top_ids, top_logprobs=top_logprobs)
    (states,) = draft_states(tiny_drafter(), {}, tables, full, 1)
    loss = alignment_loss([states], full, tables.head, torch.arange(VOCAB))
    expected = [full_kl(log_p[0, s + 1].exp(), (tables.head @ states[0, s]).softmax(-1)) for s in range(5)]
    assert float(loss) == pytest.approx(sum(expected) / 5, rel=1e-4)


def test_padding_and_batching_change_nothing() -> None:
    wide, narrow = random_trace(0, width=20), random_trace(1, width=8)
    drafter, tables = tiny_drafter(), tiny_tables()
    batch, alone = collate([wide, narrow], CPU), collate([narrow], CPU)
    for together, single in zip(
        draft_states(drafter, {}, tables, batch, 3), draft_states(drafter, {}, tables, alone, 3), strict=True
    ):
        # Step j leaves the window from root width - 1 - j on; only padding differs there.
        torch.testing.assert_close(together[1, :5], single[0, :5], rtol=1e-5, atol=1e-6)


def test_draft_states_are_those_of_unroll() -> None:
    trace = replace(random_trace(4, width=10), start=0, past=NO_PAST)
    batch, drafter, tables = collate([trace], CPU), tiny_drafter(), tiny_tables()
    tokens = torch.from_numpy(trace.token_ids[1:]).long()
    embeddings = tables.embed(torch.cat((tokens, torch.zeros(1, dtype=torch.int64))))[None]
    expected = list(unroll(drafter, batch.features, embeddings, 2))
    for states, reference in zip(draft_states(drafter, {}, tables, batch, 2), expected, strict=True):
        assert torch.equal(states, reference)


def test_features_arrive_as_the_bfloat16_values_they_were() -> None:
    trace = random_trace(5, width=4)
    bits = torch.from_numpy(trace.features.astype("int32")).to(torch.int16)
    assert torch.equal(collate([trace], CPU).features[0], bits.view(torch.bfloat16).float())


def test_candidates_hold_core_tops_and_tokens() -> None:
    batch = collate([random_trace(0), random_trace(1, width=6)], CPU)
    candidates = candidate_ids(CORE, batch)
    expected = (
        set(CORE.tolist()) | set(batch.top_ids.flatten().tolist()) | set(batch.token_ids.flatten().tolist())
    )
    assert candidates.tolist() == sorted(expected)


def test_a_batch_without_scored_positions_is_an_error() -> None:
    batch, tables = collate([random_trace(0, width=6, context=6)], CPU), tiny_tables()
    states = draft_states(tiny_drafter(), {}, tables, batch, 2)
    with pytest.raises(ValueError, match="no scored position"):
        alignment_loss(states, batch, tables.head, torch.arange(VOCAB))
