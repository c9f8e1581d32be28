"""Which positions count how much: wrong ones, those that drafting reaches, those that are due."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from evospec.align.batch import TraceBatch, collate, rejected
from evospec.align.curriculum import REST, Curriculum, judge_positions, target_entropy
from evospec.align.loss import DraftScores, alignment_loss, draft_scores
from evospec.align.trace import Trace
from evospec.align.weighing import PositionWeights, accepted_chance, reached
from evospec.config import AlignmentConfig
from tests.unit.align_tiny import HIDDEN, VOCAB, random_trace, tiny_config, tiny_tables, tiny_trainer

STEPS = 3
ALL = torch.arange(VOCAB)


def trace_with_cycles(seed: int = 0, width: int = 24) -> Trace:
    """Every cycle has two drafted tokens accepted and a third rejected."""
    place = np.arange(width) % 3
    return replace(random_trace(seed, width=width), draft_position=place.astype(np.int8), accepted=place < 2)


def scored(seed: int = 0, noise: float = 1.0) -> tuple[list[DraftScores], TraceBatch]:
    generator = torch.Generator().manual_seed(seed)
    batch = collate([trace_with_cycles(seed), trace_with_cycles(seed + 1, width=17)], torch.device("cpu"))
    rows, width = batch.scored.shape
    states = [noise * torch.randn(rows, width, HIDDEN, generator=generator) for _ in range(STEPS)]
    return draft_scores(states, batch, tiny_tables().head, ALL, batch.scored), batch


def with_logits(scores: DraftScores, logits: Tensor) -> DraftScores:
    return replace(scores, states=logits, head=torch.eye(logits.shape[-1]))


@pytest.mark.parametrize("curriculum", ["uniform", "competence"])
def test_a_frugal_loss_is_the_same_with_the_same_gradients(curriculum: str) -> None:
    _, batch = scored()
    states = [torch.randn(*batch.scored.shape, HIDDEN, requires_grad=True) for _ in range(STEPS)]
    seen = []
    for frugal in (False, True):
        weighing = PositionWeights.of(tiny_config(curriculum=curriculum, position_weights="reach"))
        loss = alignment_loss(states, batch, tiny_tables().head, ALL, weighing, frugal=frugal)
        seen.append((loss, *torch.autograd.grad(loss, states)))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)


def test_wrong_positions_are_the_first_rejections_alone() -> None:
    trace = trace_with_cycles()
    assert np.array_equal(np.flatnonzero(rejected(trace)), np.arange(5, 24, 3))  # the first four are prompt


def test_positions_that_do_not_count_have_no_part_in_the_loss() -> None:
    _, batch = scored()
    states = [torch.randn(*batch.scored.shape, HIDDEN, requires_grad=True) for _ in range(STEPS)]
    loss = alignment_loss(states, batch, tiny_tables().head, ALL, counted=batch.wrong)
    for step, (state, grad) in enumerate(zip(states, torch.autograd.grad(loss, states), strict=True)):
        touched = grad.abs().sum(dim=-1) > 0
        expected = torch.zeros_like(touched)
        expected[:, : state.shape[1] - 1 - step] = batch.wrong[:, step + 1 :]
        assert torch.equal(touched, expected)


def test_weights_scale_the_loss_of_their_positions() -> None:
    _, batch = scored()
    state = torch.randn(*batch.scored.shape, HIDDEN)

    def loss(*factors: float) -> float:
        def weigh(scores: list[DraftScores], batch: TraceBatch, candidates: Tensor) -> list[Tensor]:
            return [torch.full((len(one.states),), factors[one.step]) for one in scores]

        return alignment_loss([state] * 2, batch, tiny_tables().head, ALL, weigh).item()

    assert loss(3.0, 3.0) == pytest.approx(loss(1.0, 1.0), rel=1e-5)
    assert loss(1.0, 3.0) == pytest.approx((loss(1.0, 0.0) + 3 * loss(0.0, 1.0)) / 4, rel=1e-5)


def test_reach_is_the_product_of_earlier_chances_from_the_same_root() -> None:
    scores, batch = scored()
    weights = reached(scores, batch, ALL)
    chances = [torch.ones(batch.scored.shape) for _ in scores]
    for one, chance in zip(scores, chances, strict=True):
        chance[:, : one.counted.shape[1]][one.counted] = accepted_chance(one)
    for step, (one, weight) in enumerate(zip(scores, weights, strict=True)):
        for place, (row, root) in enumerate(one.counted.nonzero().tolist()):
            expected = 1.0
            for earlier in range(step):
                expected *= chances[earlier][row, root].item()
            assert weight[place].item() == pytest.approx(expected, rel=1e-5)
    assert weights[0].min() == 1.0
    assert weights[2].mean() < weights[1].mean() < 1.0


def test_difficulty_grows_with_each_of_its_signs() -> None:
    scores, batch = scored()
    first = scores[0]
    base = judge_positions(first, batch, ALL, STEPS - 1).difficulty
    assert ((base >= 0) & (base <= 1)).all()
    shallow = judge_positions(replace(first, step=0), batch, ALL, deepest=4).difficulty
    assert torch.equal(shallow, base)
    unbroken = judge_positions(first, replace(batch, wrong=torch.zeros_like(batch.wrong)), ALL, STEPS - 1)
    broken = first.at(batch.wrong)
    assert torch.allclose(base[broken] - unbroken.difficulty[broken], torch.tensor(0.25))
    assert torch.equal(base[~broken], unbroken.difficulty[~broken])
    own = first.at(batch.token_ids[:, 1:])
    sure = first.logits.scatter(-1, own[:, None], 1e4)
    known = judge_positions(with_logits(first, sure), batch, ALL, STEPS - 1)
    assert known.right.all()
    assert (known.difficulty <= base + 1e-6).all()
    flat = torch.full_like(first.top_logprobs, -np.log(first.top_logprobs.shape[1] + 1.0))
    assert torch.allclose(target_entropy(flat), torch.tensor(1.0), atol=1e-3)


def test_a_curriculum_takes_more_as_the_drafter_gets_better() -> None:
    scores, batch = scored(noise=0.01)  # wrong nearly everywhere
    curriculum = Curriculum("competence", margin=0.3)
    assert curriculum.share == 1.0
    weights = torch.cat(curriculum.weights(scores, batch, ALL))
    weak = curriculum.share
    assert 0.3 <= weak < 0.4
    assert sorted(set(weights.tolist())) == pytest.approx([REST, 1.0])
    assert (weights == 1).float().mean().item() == pytest.approx(weak, abs=0.02)
    own = [one.at(batch.token_ids[:, 1:])[:, None] for one in scores]
    perfect = [
        with_logits(one, one.logits.scatter(-1, ids, 99.0)) for one, ids in zip(scores, own, strict=True)
    ]
    shares = []
    for _ in range(30):
        curriculum.weights(perfect, batch, ALL)
        shares.append(curriculum.share)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_hard_first_takes_the_other_end() -> None:
    scores, batch = scored(noise=0.01)
    easy = torch.cat(Curriculum("competence", 0.3).weights(scores, batch, ALL)) == 1
    hard = torch.cat(Curriculum("hard-first", 0.3).weights(scores, batch, ALL)) == 1
    difficulty = torch.cat([judge_positions(one, batch, ALL, STEPS - 1).difficulty for one in scores])
    assert easy.sum() == hard.sum()
    assert difficulty[easy].max() <= difficulty[hard].min()


@pytest.mark.parametrize(
    "options",
    [
        {"loss_rows": "vocabulary"},
        {"positions": "wrong"},
        {"position_weights": "reach"},
        {"curriculum": "competence", "position_weights": "reach"},
        {"curriculum": "hard-first"},
    ],
    ids=str,
)
def test_every_option_learns(options: dict[str, object]) -> None:
    trainer = tiny_trainer(**options)
    for seed in range(12):
        trainer.add(trace_with_cycles(seed % 3))
    losses = [trainer.step().loss for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def test_without_any_options_only_the_draft_step_counts() -> None:
    scores, batch = scored()
    weights = PositionWeights.of(AlignmentConfig())(scores, batch, ALL)
    for weight, expected in zip(weights, (1.0, 0.8, 0.64), strict=True):
        assert weight.min() == weight.max() == pytest.approx(expected)


def test_traces_without_a_wrong_position_teach_all_the_same() -> None:
    trainer = tiny_trainer(positions="wrong")
    for seed in range(8):
        trainer.add(random_trace(seed))
    assert trainer.step().applied


def test_reach_needs_all_positions() -> None:
    with pytest.raises(ValueError, match="set position_weights to decay"):
        tiny_config(positions="wrong", position_weights="reach")
