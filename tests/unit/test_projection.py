"""A packed product is PyTorch's own, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from evospec.models.projection import Projection


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


def test_what_is_written_into_the_weight_counts_after_a_refresh() -> None:
    weight, states = torch.randn(96, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    projection = Projection(weight)
    weight.mul_(2.0)
    projection.refresh()
    torch.testing.assert_close(projection(states), linear(states, weight))
