"""Drafts that are written over others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evospec.decoding.draft import Draft, DraftTree, Proposal


def numbers(*shape: int) -> Tensor:
    return torch.randint(0, 100, shape)


def chain() -> Draft:
    return Draft(numbers(2, 3), numbers(2))


def tree() -> Draft:
    return Draft(numbers(2, 4), numbers(2), tree=DraftTree(numbers(2, 4), numbers(2, 5), numbers(2, 5), 2))


def drawn() -> Draft:
    return Draft(numbers(2, 3), numbers(2), Proposal(numbers(2, 3), torch.rand(2, 3, 9), numbers(9)))


def drawn_from_all_rows() -> Draft:
    return Draft(numbers(2, 3), numbers(2), Proposal(numbers(2, 3), torch.rand(2, 3, 9), None))


@pytest.mark.parametrize("make", [chain, tree, drawn, drawn_from_all_rows])
def test_a_draft_written_over_another_is_all_of_it(make: Callable[[], Draft]) -> None:
    first, second = make(), make()
    kept = first.clone()
    places = [tensor.data_ptr() for tensor in kept._tensors()]
    assert len(places) == {chain: 2, tree: 5, drawn: 5, drawn_from_all_rows: 4}[make]
    assert not set(places) & {tensor.data_ptr() for tensor in first._tensors()}
    assert second.copied_to(kept) is kept
    assert [tensor.data_ptr() for tensor in kept._tensors()] == places
    for ours, theirs in zip(kept._tensors(), second._tensors(), strict=True):
        assert torch.equal(ours, theirs)
    assert kept.depth == second.depth
