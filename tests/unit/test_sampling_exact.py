"""Sampling is exact: emitted tokens follow the target, whatever the drafter and its vocabulary.

Each test draws 120,000 two-token continuations; seeds are fixed, so a verdict never
changes from run to run. The planted bugs show that the test would notice.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.decoding.draft import Draft
from evospec.decoding.sampling import (
    Purpose,
    SamplingBatch,
    SamplingParams,
    draw,
    target_probabilities,
    uniforms,
)
from evospec.decoding.verify import Verdict, verify
from evospec.models.draft_body import DraftBody
from evospec.vocab.active import ActiveRows
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.sampling_toys import VOCAB, Toy, Verify, batch, emitted_counts, expected_shares, p_value

DRAWS = 120_000
REDUCED = torch.tensor([7, 2, 9, 0, 4])
SHIFTED = torch.tensor([2, 7, 9, 0, 5])
PLAIN = SamplingParams(temperature=1.0)

CASES = {
    "temperature 1": PLAIN,
    "temperature 0.7": SamplingParams(temperature=0.7),
    "top-k": SamplingParams(temperature=1.0, top_k=4),
    "top-p": SamplingParams(temperature=1.3, top_p=0.8),
    "all": SamplingParams(temperature=0.9, top_k=6, top_p=0.9),
}


@pytest.mark.parametrize("params", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("active", [None, REDUCED], ids=["full", "reduced"])
def test_emitted_tokens_follow_the_target(params: SamplingParams, active: Tensor | None) -> None:
    toy = Toy.random(seed=3)
    counts = emitted_counts(toy, params, draws=DRAWS, active=active)
    assert p_value(counts, expected_shares(toy, params)) > 1e-3


def test_emitted_tokens_follow_the_target_while_the_vocabulary_changes() -> None:
    """Rows are rewritten in place between drafting and verifying; the snapshot still maps the draft."""
    toy = Toy.random(seed=4)
    buffer = REDUCED.clone()

    def rewrite_then_verify(draft: Draft, logits: Tensor, sampling: SamplingBatch, first: Tensor) -> Verdict:
        buffer.copy_(SHIFTED if torch.equal(buffer, REDUCED) else REDUCED)
        return verify(draft, logits, sampling, first)

    total = sum(
        emitted_counts(
            toy, PLAIN, draws=DRAWS // 2, active=buffer, check=rewrite_then_verify, first_seed=seed
        )
        for seed in (0, DRAWS)
    )
    assert p_value(total, expected_shares(toy, PLAIN)) > 1e-3


def test_a_draft_keeps_the_map_it_was_made_with() -> None:
    """ChainDrafter's snapshot does not move when the buffer of active rows does."""
    target = tiny_target()
    drafter = tiny_drafter(target)
    rows = ActiveRows(target.tables, capacity=8, half_life=1)
    rows.activate(np.arange(40, 48), 1.0)
    rows.write()
    drafted = ChainDrafter(DraftBody(drafter), target.tables).draft(
        DraftRoot(
            hidden=torch.randn(1, 1, target.hidden_size),
            starts=torch.tensor([0]),
            lengths=torch.tensor([3]),
            drawn=torch.tensor([0]),
            longest_context=0,
        ),
        length=3,
        head=rows.view(),
        cache=drafter.new_cache(1, 8),
        drawing=batch(PLAIN, 1, first_seed=0),
    )
    rows.activate(np.arange(100, 108), 2.0)
    rows.write()
    proposal = drafted.proposal
    assert proposal is not None
    assert proposal.row_ids is not None
    assert proposal.row_ids.tolist() == list(range(40, 48))
    assert torch.equal(proposal.row_ids[proposal.choices], drafted.tokens)


def test_a_drafter_equal_to_the_target_is_always_accepted() -> None:
    toy = Toy.random(seed=5, agreement=1.0)
    accepted: list[Tensor] = []

    def check(draft: Draft, logits: Tensor, sampling: SamplingBatch, first: Tensor) -> Verdict:
        verdict = verify(draft, logits, sampling, first)
        accepted.append(verdict.accepted)
        return verdict

    counts = emitted_counts(toy, PLAIN, draws=20_000, active=None, check=check)
    assert p_value(counts, expected_shares(toy, PLAIN)) > 1e-3
    assert torch.cat(accepted).float().mean() > 1.9999


def test_a_stale_map_is_caught() -> None:
    toy = Toy.random(seed=3)
    counts = emitted_counts(toy, PLAIN, draws=DRAWS, active=SHIFTED, drafted_with=REDUCED)
    assert p_value(counts, expected_shares(toy, PLAIN)) < 1e-9


def residual_of_the_drafted_token_only(
    draft: Draft, logits: Tensor, sampling: SamplingBatch, first: Tensor
) -> Verdict:
    """Planted bug: the residual subtracts the drafted token's mass, not the whole proposal."""
    verdict = verify(draft, logits, sampling, first)
    proposal = draft.proposal
    assert proposal is not None
    p = target_probabilities(logits, sampling)
    for row in range(len(p)):
        place = int(verdict.accepted[row])
        if place < draft.tokens.shape[1]:
            token = draft.tokens[row, place]
            residual = p[row, place].clone()
            residual[token] = (
                residual[token] - proposal.probabilities[row, place, proposal.choices[row, place]]
            ).clamp(min=0)
            number = uniforms(
                sampling.seeds[row : row + 1], first[row] + torch.tensor([[place]]), Purpose.EMIT
            )
            verdict.tokens[row, place] = draw(residual[None], number[:, 0])[0]
    return verdict


def target_renormalised_inside_active_rows(
    draft: Draft, logits: Tensor, sampling: SamplingBatch, first: Tensor
) -> Verdict:
    """Planted bug: the target's distribution is cut down to the active rows."""
    inside = torch.full((VOCAB,), -torch.inf)
    assert draft.proposal is not None
    inside[draft.proposal.row_ids] = 0.0
    return verify(draft, logits + inside, sampling, first)


@pytest.mark.parametrize(
    "bug",
    [residual_of_the_drafted_token_only, target_renormalised_inside_active_rows],
    ids=lambda bug: bug.__name__,
)
def test_a_planted_bug_is_caught(bug: Verify) -> None:
    toy = Toy.random(seed=3)
    counts = emitted_counts(toy, PLAIN, draws=20_000, active=REDUCED, check=bug)
    assert p_value(counts, expected_shares(toy, PLAIN)) < 1e-9
