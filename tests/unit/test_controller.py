"""The controller finds the fastest plan, keeps to it, and notices when another becomes faster."""

from __future__ import annotations

import random

import pytest

from evospec.config import EngineConfig
from evospec.decoding.tree import TreeShape
from evospec.engine.controller import Controller
from evospec.engine.plan import PLAIN, DraftPlan, plans_of

CHAIN, SHORT = DraftPlan.chain(5), DraftPlan.chain(2)
TREE = DraftPlan.of_tree(TreeShape(4, 4, 12))
PLANS = [CHAIN, TREE, PLAIN, SHORT]


class World:
    """Cycle times and acceptance as they truly are; what is chosen is carried out in it."""

    def __init__(self, seconds: dict[DraftPlan, float], rates: dict[DraftPlan, float]) -> None:
        self.seconds, self.rates = seconds, rates
        self.random = random.Random(0)
        self.chosen: list[DraftPlan] = []
        self.spent, self.emitted = 0.0, 0

    def cycle(self, controller: Controller, rows: int = 1) -> None:
        plan = controller.choose(rows)
        accepted = [self._accept(plan) for _ in range(rows)]
        noise = 1.0 + 0.1 * self.random.random()
        controller.observe(plan, rows, self.seconds[plan] * noise, [plan.depth] * rows, accepted)
        self.chosen.append(plan)
        self.spent += self.seconds[plan]
        self.emitted += rows + sum(accepted)

    def _accept(self, plan: DraftPlan) -> int:
        count = 0
        while count < plan.depth and self.random.random() < self.rates[plan]:
            count += 1
        return count


def world(rate: float, tree_rate: float) -> World:
    return World(
        {CHAIN: 1.4, TREE: 1.9, PLAIN: 1.0, SHORT: 1.15},
        {CHAIN: rate, TREE: tree_rate, PLAIN: 0.0, SHORT: rate},
    )


@pytest.mark.parametrize(
    ("rate", "tree_rate", "best"),
    [(0.03, 0.05, PLAIN), (0.35, 0.4, SHORT), (0.85, 0.87, CHAIN), (0.5, 0.85, TREE)],
    ids=["nothing pays", "a short chain", "a long chain", "a tree"],
)
def test_finds_the_fastest_plan(rate: float, tree_rate: float, best: DraftPlan) -> None:
    there, controller = world(rate, tree_rate), Controller(PLANS)
    for _ in range(600):
        there.cycle(controller)
    assert controller.current == best
    assert there.chosen[100:].count(best) > 0.9 * 500


def test_looking_costs_little_where_nothing_pays() -> None:
    there, controller = world(0.03, 0.05), Controller(PLANS)
    for _ in range(2_000):
        there.cycle(controller)
    assert there.emitted / there.spent > 0.98  # plain decoding emits 1 per unit of time


def test_follows_the_traffic() -> None:
    there, controller = world(0.03, 0.05), Controller(PLANS)
    for _ in range(400):
        there.cycle(controller)
    assert controller.current == PLAIN
    there.rates = world(0.85, 0.87).rates
    for _ in range(2_000):
        there.cycle(controller)
    assert controller.current == CHAIN
    assert controller.switches >= 2


def test_a_slow_while_is_soon_forgotten() -> None:
    """Something else had the machine, while one plan was in use."""
    there, controller = world(0.85, 0.87), Controller(PLANS)
    for _ in range(400):
        there.cycle(controller)
    assert controller.current == CHAIN
    usual, there.seconds[CHAIN] = there.seconds[CHAIN], 2.2
    while controller.current == CHAIN:
        there.cycle(controller)
    there.seconds[CHAIN] = usual
    there.chosen.clear()
    while controller.current != CHAIN and len(there.chosen) < 2_000:
        there.cycle(controller)
    assert len(there.chosen) < 400


def test_equal_plans_do_not_alternate() -> None:
    there, controller = world(0.0, 0.0), Controller([PLAIN, SHORT])
    there.seconds = {PLAIN: 1.0, SHORT: 1.0}
    for _ in range(1_000):
        there.cycle(controller)
    assert controller.switches <= 4


def test_batches_are_timed_apart() -> None:
    """A draft that pays alone need not pay in a batch."""
    alone, crowd = world(0.85, 0.87), world(0.85, 0.87)
    crowd.seconds = {CHAIN: 9.0, TREE: 20.0, PLAIN: 1.0, SHORT: 5.0}
    controller = Controller(PLANS)
    for _ in range(40):
        alone.cycle(controller, rows=1)
        crowd.cycle(controller, rows=8)
    assert crowd.chosen[-10:].count(PLAIN) >= 9
    for _ in range(20):
        alone.cycle(controller, rows=1)
    assert alone.chosen[-10:].count(CHAIN) >= 8


def test_another_number_of_rows_is_soon_known() -> None:
    """Plans that are far from the best are not measured again at each number of rows."""
    there, controller = world(0.85, 0.87), Controller(PLANS)
    for _ in range(200):
        there.cycle(controller)
    for rows in (2, 4, 8):
        began = len(there.chosen)
        for _ in range(40):
            there.cycle(controller, rows)
        chosen = there.chosen[began:]
        assert chosen.count(CHAIN) >= 30
        assert chosen[15:].count(CHAIN) >= 22


def test_one_plan_is_kept_without_measuring() -> None:
    controller = Controller([CHAIN])
    assert [controller.choose(3) for _ in range(5)] == [CHAIN] * 5


def test_the_whole_head_is_drafted_from_where_many_rows_make_it_pay() -> None:
    """It is not even tried for few; what it accepts is counted apart."""
    whole = DraftPlan.chain(5, full_head=True)
    controller = Controller([*PLANS, whole])
    few = World({**world(0.8, 0.8).seconds, whole: 2.0}, {**world(0.8, 0.8).rates, whole: 0.84})
    many = World({**few.seconds, CHAIN: 2.4, SHORT: 2.2, PLAIN: 1.6}, {**few.rates, TREE: 0.3})
    for _ in range(300):
        few.cycle(controller, 3)
    assert whole not in few.chosen
    assert controller.current == CHAIN
    for _ in range(300):
        many.cycle(controller, 16)
    assert controller.current == whole
    few.chosen.clear()
    for _ in range(300):
        few.cycle(controller, 3)
    assert whole not in few.chosen
    assert controller.current == CHAIN


def test_plans_of_a_config() -> None:
    assert plans_of(EngineConfig(), drafts=False) == [PLAIN]
    assert plans_of(EngineConfig(draft_length=0), drafts=True) == [PLAIN]
    assert plans_of(EngineConfig(drafting="chain"), drafts=True) == [CHAIN]
    assert [str(plan) for plan in plans_of(EngineConfig(drafting="tree"), drafts=True)] == ["tree-4x4-12"]
    every = [str(plan) for plan in plans_of(EngineConfig(), drafts=True)]
    assert every[0] == "chain-5"
    assert {"plain", "chain-1", "chain-2", "tree-4x4-12"} < set(every)
    assert len(set(every)) == len(every)
    pruned = {str(plan) for plan in plans_of(EngineConfig(max_batch=8), drafts=True, prunes=True)}
    assert pruned == {*every, "chain-5-full"}
    assert plans_of(EngineConfig(max_batch=4), drafts=True, prunes=True) == plans_of(
        EngineConfig(), drafts=True
    )
    for depth in range(1, 9):
        for beam in range(1, 8):
            nodes = min(beam + (depth - 1) * beam**2, 62)
            config = EngineConfig(tree_depth=depth, tree_beam=beam, tree_nodes=nodes)
            assert plans_of(config, drafts=True)
