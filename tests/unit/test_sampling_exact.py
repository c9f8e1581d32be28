"""Sampling is exact: emitted tokens follow the target, whatever the drafter and its vocabulary.

Each test draws 120,000 two-token continuations; seeds are fixed, so a verdict never
changes from run to run. The planted bugs show that the test would notice.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evospec.decoding.sampling import (
    Purpose,
    SamplingBatch,
    SamplingParams,
    draw,
    target_probabilities,
    uniforms,
)
from evospec.decoding.verify import Draft, Verdict, verify
from tests.unit.sampling_toys import VOCAB, Toy, emitted_counts, expected_shares, p_value

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
    """The buffer changes in place right after drafting; the draft's snapshot still verifies it."""
    toy = Toy.random(seed=4)

    def check(draft: Draft, logits: Tensor, sampling: SamplingBatch, first: Tensor) -> Verdict:
        return verify(draft, logits, sampling, first)

    total = sum(
        emitted_counts(toy, PLAIN, draws=DRAWS // 2, active=rows, check=check) for rows in (REDUCED, SHIFTED)
    )
    assert p_value(total, expected_shares(toy, PLAIN)) > 1e-3


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
    assert draft.probabilities is not None
    p = target_probabilities(logits, sampling)
    for row in range(len(p)):
        place = int(verdict.accepted[row])
        if place < draft.tokens.shape[1]:
            token = draft.tokens[row, place]
            residual = p[row, place].clone()
            residual[token] = (
                residual[token] - draft.probabilities[row, place, draft.choices[row, place]]
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
    inside[draft.row_ids] = 0.0
    return verify(draft, logits + inside, sampling, first)


@pytest.mark.parametrize(
    "bug",
    [residual_of_the_drafted_token_only, target_renormalised_inside_active_rows],
    ids=lambda bug: bug.__name__,
)
def test_a_planted_bug_is_caught(bug: object) -> None:
    toy = Toy.random(seed=3)
    counts = emitted_counts(toy, PLAIN, draws=20_000, active=REDUCED, check=bug)  # type: ignore[arg-type]
    assert p_value(counts, expected_shares(toy, PLAIN)) < 1e-9
