"""The semantic source: what it looks up, and what a finished request leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from evospec.config import SemanticConfig
from evospec.engine.request import Request
from evospec.vocab.semantic import SemanticSource

CORE = range(10)
VECTOR = np.array([0.6, 0.8], np.float32)


@pytest.fixture
def source() -> SemanticSource:
    return SemanticSource(SemanticConfig(refresh_tokens=3, tokens_per_point=3), CORE, "target")


def emit(source: SemanticSource, tokens: Sequence[int], second: Sequence[int]) -> bool:
    """Tokens that were the target's choice, with its second choices."""
    return source.emitted("r", tokens, [[*choices, 99] for choices in zip(tokens, second, strict=True)])


def test_a_point_holds_the_tail_of_what_was_emitted_or_nearly_so_each_token_once(
    source: SemanticSource,
) -> None:
    source.admit(Request("r", (50, 51), tenant="a"), VECTOR)
    emit(source, [20, 3, 20], [21, 20, 4])
    source.finish("r", learn=True)
    (point,) = source.take_points()
    # neither the prompt's 50 and 51, nor the core's 3 and 4, nor the third choice, 99
    assert (point.token_ids, point.weights) == ((20, 21), (1.0, 1.0))
    assert (point.tenant, point.target) == ("a", "target")
    assert point.vector is VECTOR
    assert source.take_points() == []


def test_a_full_point_holds_what_came_up_most_often(source: SemanticSource) -> None:
    source.admit(Request("r", (50,)), VECTOR)
    emit(source, [20, 21, 22, 23], [23, 22, 21, 30])
    source.finish("r", learn=True)
    (point,) = source.take_points()
    assert set(point.token_ids) == {21, 22, 23}


def test_fewer_reported_choices_will_do(source: SemanticSource) -> None:
    source.admit(Request("r", (50,)), VECTOR)
    source.emitted("r", [20], [[]])
    source.finish("r", learn=True)
    assert source.take_points()[0].token_ids == (20,)


@pytest.mark.parametrize(("tokens", "learn"), [([20], False), ([3], True), ([], True)])
def test_nothing_is_written_without_leave_or_without_a_tail(
    source: SemanticSource, tokens: list[int], learn: bool
) -> None:
    source.admit(Request("r", (50,)), VECTOR)
    emit(source, tokens, tokens)
    source.finish("r", learn=learn)
    assert source.take_points() == []


def test_it_is_time_for_a_look_up_every_so_many_tokens(source: SemanticSource) -> None:
    source.admit(Request("r", (50,)), VECTOR)
    assert [emit(source, [20], [21]) for _ in range(4)] == [False, False, True, True]
    source.asked("r")
    assert [emit(source, [20], [21]) for _ in range(3)] == [False, False, True]
    source.asked("r")
    assert emit(source, [20, 20, 20, 20], [21, 21, 21, 21])


def test_a_newer_look_up_replaces_one_that_nobody_took(source: SemanticSource) -> None:
    later = np.array([1.0, 0.0], np.float32)
    source.admit(Request("r", (50,), tenant="a"), VECTOR)
    source.admit(Request("s", (50,), tenant="b"), VECTOR)
    source.look_up("r", later)
    assert [(each.request_id, each.tenant, each.vector is later) for each in source.take_lookups()] == [
        ("s", "b", False),
        ("r", "a", True),
    ]
    source.finish("r", learn=False)
    source.look_up("r", later)  # too late
    assert source.take_lookups() == []
