"""What traces may cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evospec.align.trace_budget import TraceBudget


class Watch:
    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now


def test_what_is_spent_comes_back_in_time() -> None:
    watch = Watch()
    budget = TraceBudget(100.0, watch)
    assert budget.left
    budget.spend(250)
    assert not budget.left
    watch.now += 1.4
    assert not budget.left
    watch.now += 0.2
    assert budget.left


def test_no_more_than_a_second_is_saved_up() -> None:
    watch = Watch()
    budget = TraceBudget(100.0, watch)
    watch.now += 50.0
    assert budget.left
    budget.spend(100)
    assert not budget.left


@given(costs=st.lists(st.integers(1, 500), min_size=1, max_size=50), step=st.floats(0.01, 3.0))
def test_the_rate_is_kept_in_the_long_run(costs: list[int], step: float) -> None:
    watch = Watch()
    budget = TraceBudget(100.0, watch)
    spent = 0
    for cost in costs:
        if budget.left:
            budget.spend(cost)
            spent += cost
        watch.now += step
        assert spent <= 100 * (watch.now - 7.0) + 100 + 500
