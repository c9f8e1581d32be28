"""The chunked loss equals the plain one, in value and gradient, whatever is left out or cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from evospec.training.batch import Batch
from evospec.training.corpus import Document
from evospec.training.fused_kl import LossShape, fused_kl

VOCAB, HIDDEN, STEPS = 37, 8, 3


def plain_kl(drafts: Tensor, target: Tensor, decided: Tensor, head: Tensor, weights: Tensor) -> Tensor:
    """All logits at once, by the library's own KL divergence and autograd."""
    losses = []
    for step in range(len(drafts)):
        log_p = log_softmax(target[decided + step] @ head.T, dim=-1)
        log_q = log_softmax(drafts[step] @ head.T, dim=-1)
        divergence = kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
        losses.append((divergence * weights[step]).sum())
    return torch.stack(losses)


def acceptance_loss(
    drafts: Tensor, target: Tensor, decided: Tensor, head: Tensor, weights: Tensor, shape: LossShape
) -> Tensor:
    """The shaped loss by autograd, all logits at once."""
    losses = []
    reached = torch.ones(drafts.shape[1])
    for step in range(len(drafts)):
        p = softmax(target[decided + step] @ head.T, dim=-1)
        q = softmax(drafts[step] @ head.T, dim=-1)
        accepted = torch.minimum(p, q).sum(dim=-1)
        of_kl = torch.exp(-shape.focus * accepted).detach()
        divergence = (p * (p / q).log()).sum(dim=-1)
        loss = of_kl * divergence + (1 - of_kl) * (1 - accepted)
        losses.append((loss * weights[step] * reached).sum())
        reached = torch.where(p.argmax(dim=-1) == q.argmax(dim=-1), reached, shape.unreached)
    return torch.stack(losses)


def inputs(roots: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    drafts = torch.randn(STEPS, roots, HIDDEN, requires_grad=True)
    return drafts, torch.randn(roots + STEPS + 5, HIDDEN)


@pytest.mark.parametrize("roots_at_once", [1, 4, 7, 100])
def test_equals_the_plain_loss_and_its_gradient(roots_at_once: int) -> None:
    drafts, target = inputs(roots=7)
    head = torch.randn(VOCAB, HIDDEN)
    decided = torch.tensor([0, 1, 2, 5, 6, 10, 11])
    weights = torch.rand(STEPS, 7)
    weights[1, 3] = 0.0
    scale = torch.tensor([1.0, 0.5, 2.0])

    expected = plain_kl(drafts, target, decided, head, weights)
    (expected_gradient,) = torch.autograd.grad((expected * scale).sum(), drafts)
    result = fused_kl(drafts, target, decided, head, weights, roots_at_once=roots_at_once)
    (gradient,) = torch.autograd.grad((result.losses * scale).sum(), drafts)

    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert not gradient[1, 3].any()
    for step in range(STEPS):
        best = (target[decided + step] @ head.T).argmax(dim=-1)
        assert torch.equal(result.matches[step], (drafts[step] @ head.T).argmax(dim=-1) == best)


@pytest.mark.parametrize("shape", [LossShape(focus=3.0), LossShape(unreached=0.3), LossShape(0.7, 0.0)])
def test_a_shaped_loss_and_its_gradient(shape: LossShape) -> None:
    drafts, target = inputs(roots=40, seed=1)
    head = torch.randn(VOCAB, HIDDEN)
    decided = torch.arange(40)
    with torch.no_grad():  # some drafts are right, so that later steps are reached
        drafts[:, ::2] = 0.5 * drafts[:, ::2] + torch.stack(
            [target[decided[::2] + step] for step in range(STEPS)]
        )
    weights = torch.rand(STEPS, 40)

    expected = acceptance_loss(drafts, target, decided, head, weights, shape)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), drafts)
    result = fused_kl(drafts, target, decided, head, weights, roots_at_once=16, shape=shape)
    (gradient,) = torch.autograd.grad(result.losses.sum(), drafts)

    torch.testing.assert_close(result.losses, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert 0.2 < result.matches.float().mean() < 0.8


def test_a_step_after_a_wrong_one_counts_as_little_as_asked() -> None:
    target = torch.randn(9, HIDDEN)
    decided = torch.arange(4)
    head = torch.randn(VOCAB, HIDDEN)
    drafts = torch.stack([target[decided + step] for step in range(STEPS)])
    drafts[0, 1] *= -1  # root 1 is wrong at once, root 2 at step 1
    drafts[1, 2] *= -1
    drafts = (drafts + 0.01).requires_grad_()
    gradients = {}
    for unreached in (0.0, 1.0):
        shape = LossShape(unreached=unreached)
        result = fused_kl(drafts, target, decided, head, torch.ones(STEPS, 4), roots_at_once=3, shape=shape)
        (gradients[unreached],) = torch.autograd.grad(result.losses.sum(), drafts)
    left_out = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    assert not gradients[0.0][left_out].any()
    assert torch.equal(gradients[0.0][~left_out], gradients[1.0][~left_out])
    assert gradients[1.0][left_out].any(dim=-1).all()


def test_equal_distributions_cost_nothing() -> None:
    target = torch.randn(9, HIDDEN)
    decided = torch.arange(4)
    drafts = torch.stack([target[decided + step] for step in range(STEPS)]).requires_grad_()
    head = torch.randn(VOCAB, HIDDEN)
    result = fused_kl(drafts, target, decided, head, torch.ones(STEPS, 4), roots_at_once=2)
    result.losses.sum().backward()
    assert result.losses.abs().max() < 1e-5
    assert drafts.grad is not None
    assert drafts.grad.abs().max() < 1e-6
    assert result.matches.all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=4), st.integers(4, 12)
)
def test_roots_are_the_places_where_serving_drafts(shapes: list[tuple[int, int]], longest: int) -> None:
    """Against a plain loop over documents, positions and steps."""
    documents = [
        Document(np.arange(100 * row, 100 * row + length), min(answer, length))
        for row, (length, answer) in enumerate(shapes, start=1)
    ]
    batch = Batch.of(documents, STEPS, longest, torch.device("cpu"))
    flat = batch.tokens.flatten().tolist()
    total, found = batch.width + STEPS, 0
    for row, document in enumerate(documents):
        tokens = document.tokens[:longest].tolist()
        for place in range(len(tokens) - 2):
            if place + 1 < document.answer:
                continue  # the token after it is not the target's own
            assert int(batch.roots[found]) == row * batch.width + place
            assert int(batch.decided[found]) == row * total + place + 1
            for step in range(STEPS):
                known = place + 2 + step < len(tokens)
                assert bool(batch.observed[step, found]) == known
                if known:
                    assert flat[int(batch.decided[found]) + step + 1] == tokens[place + 2 + step]
            found += 1
    assert found == len(batch.roots) == sum(batch.roots_per_row)
