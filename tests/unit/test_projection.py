"""A packed product is PyTorch's own, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear

from evospec.models.projection import Projection, chosen_product
from evospec.models.row_choice import RowChoice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2, 6), (3, 1), (1, 200), (0,)], ids=str)
def test_equals_linear(rows: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    bias = torch.randn(96, generator=generator).to(dtype) if with_bias else None
    states = torch.randn(*rows, 64, generator=generator).to(dtype)
    product = Projection(weight, bias)(states)
    assert product.shape == (*rows, 96)
    torch.testing.assert_close(product, linear(states, weight, bias))


def test_takes_slices_of_larger_states() -> None:
    states = torch.randn(2, 7, 64).bfloat16()
    weight = torch.randn(96, 64).bfloat16()
    torch.testing.assert_close(Projection(weight)(states[:, -1:]), linear(states[:, -1:], weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_written_into_the_weight_counts_after_a_refresh(dtype: torch.dtype) -> None:
    weight, states = torch.randn(96, 64).to(dtype), torch.randn(2, 64).to(dtype)
    projection = Projection(weight)
    weight.mul_(2.0)
    projection.refresh()
    torch.testing.assert_close(projection(states), linear(states, weight))


@given(
    choice=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    width=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_bias=st.booleans(),
)
def test_rows_go_through_the_variants_they_chose(
    choice: list[int], width: int, dtype: torch.dtype, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(len(choice))
    stack = torch.randn(3, 48, 32, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype) if with_bias else None
    states = torch.randn(len(choice), width, 32, generator=generator).to(dtype)
    expected = torch.stack(
        [linear(row, stack[variant], bias) for row, variant in zip(states, choice, strict=True)]
    )
    chosen = RowChoice(torch.tensor(choice))
    torch.testing.assert_close(Projection(stack, bias).by(chosen)(states), expected)
    if bias is None:
        torch.testing.assert_close(chosen_product(states, stack, chosen.variants), expected)


def test_nobody_chooses_where_there_is_no_choice() -> None:
    only, stack = Projection(torch.randn(4, 8)), Projection(torch.randn(2, 4, 8))
    assert only.by(RowChoice(torch.zeros(3, dtype=torch.int64))) is only
    assert stack.by(None) is stack
    states = torch.randn(3, 1, 8)
    torch.testing.assert_close(stack(states), linear(states, stack.stack[0]))


def test_what_is_written_into_a_variant_counts_for_its_rows_alone() -> None:
    stack, states = torch.randn(2, 96, 64).bfloat16(), torch.randn(2, 1, 64).bfloat16()
    projection = Projection(stack)
    stack[1].mul_(2.0)
    projection.refresh()
    product = projection.by(RowChoice(torch.tensor([0, 1])))(states)
    torch.testing.assert_close(product[1], linear(states[1], stack[1]))
    torch.testing.assert_close(product[0], linear(states[0], stack[0]))
