"""The kernel that ends a cycle comes to the same, bit for bit, as the operations that it stands for.

On a machine with a CUDA device it runs there; elsewhere Triton's interpreter runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evospec.decoding.best import BestTokens, best_tokens
from evospec.decoding.draft import Draft
from evospec.engine import settling
from evospec.engine.batch_state import BatchState
from evospec.engine.host_copy import ReportBuffer
from evospec.engine.passes import Step
from evospec.engine.plan import DraftPlan
from evospec.engine.report import NOTHING, ReportLayout, Wanted
from evospec.engine.settling import Settling, Verified
from evospec.engine.slots import Slots
from evospec.kernels.settle import Reported, settle
from evospec.models.target import TargetOutput

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS, VOCAB, WAITING = 4, 11, 9
# Few numbers, and more than a program copies at once; the last ones in neither case a whole block.
SIZES = (5, 1500)
WANTED = (NOTHING, Wanted(ranked=3), Wanted(traced=2), Wanted(ranked=1, traced=4), Wanted(2, 1, drafted=True))


@dataclass(frozen=True)
class Case:
    seed: int
    rows: int
    nodes: int
    wanted: Wanted = NOTHING
    covered: bool = False
    chosen: bool = False
    absorbed: bool = True
    drafter: bool = True
    contexts: bool = False
    size: int = 5
    dtype: torch.dtype = torch.float32

    @property
    def layout(self) -> ReportLayout:
        return ReportLayout(
            self.nodes + 1,
            nodes=self.nodes,
            tree=False,
            covered=self.covered,
            wanted=self.wanted,
            chosen=self.chosen,
        )


CASES = st.builds(
    Case,
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 3),
    nodes=st.integers(0, 5),
    wanted=st.sampled_from(WANTED),
    covered=st.booleans(),
    chosen=st.booleans(),
    absorbed=st.booleans(),
    drafter=st.booleans(),
    contexts=st.booleans(),
    size=st.sampled_from(SIZES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


class Emitted:
    """Stands for the contexts, which are told how many tokens each row emits."""

    advances = True

    def __init__(self) -> None:
        self.told: list[Tensor] = []

    def advance(self, hidden: Tensor, emitted: Tensor) -> None:
        self.told += [hidden, emitted]


class Random:
    """Numbers that a case is made of."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Of [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator).to(DEVICE)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(DEVICE, dtype)


def cycle_of(case: Case) -> Verified:
    """Drafts that mostly hold what the target decides, and lengths of all kinds."""
    random, layout = Random(case.seed), case.layout
    scores = random.normal(case.rows, case.nodes + 1, VOCAB, dtype=case.dtype)
    right = random.integers(0, 6, case.rows, case.nodes) > 0
    other = random.integers(0, VOCAB, case.rows, case.nodes)
    tokens = torch.where(right, scores[:, :-1].argmax(dim=-1), other)
    lengths = random.integers(0, case.nodes + 2, case.rows)
    step = Step(
        rows=case.rows,
        plan=DraftPlan.chain(case.nodes),
        span=64,
        pairs=2 * case.absorbed,
        head_rows=VOCAB,
        any_sampled=False,
        truncated=False,
        draws=False,
        report=layout,
    )
    features = random.normal(case.rows, case.nodes + 1, case.size, dtype=case.dtype)
    hidden = random.normal(case.rows, case.nodes + 1, 3, dtype=case.dtype)
    return Verified(step, Draft(tokens, lengths), scores, TargetOutput(hidden, features))


def state_of(case: Case) -> BatchState:
    random = Random(case.seed + 1)
    state = BatchState(SLOTS, WAITING, case.size, case.dtype, DEVICE)
    state.last.copy_(random.integers(0, VOCAB, SLOTS))
    state.cached.copy_(random.integers(0, 1000, SLOTS))
    state.remaining.copy_(random.integers(0, case.nodes + 3, SLOTS))
    state.drawn.copy_(random.integers(0, 9, SLOTS))
    state.pending.copy_(random.integers(0, WAITING - case.nodes, SLOTS))
    state.pending_tokens.copy_(random.integers(0, VOCAB, SLOTS, WAITING))
    state.pending_features.copy_(random.normal(SLOTS, WAITING, case.size, dtype=case.dtype))
    state.choice.copy_(random.integers(0, 5, SLOTS))
    return state


def settled(case: Case, *, at_once: bool) -> list[Tensor]:
    """Whatever a cycle leaves: the report, the features returned, what contexts are told, and the state."""
    cycle, state, layout, contexts = cycle_of(case), state_of(case), case.layout, Emitted()
    assert cycle.is_plain
    slots = SimpleNamespace(
        state=state,
        draft_cache=object() if case.drafter else None,
        contexts=contexts if case.contexts else None,
    )
    active = Random(case.seed + 2).integers(0, 2, VOCAB) if case.covered else None
    # A little more than it needs, which must stay as it is.
    reports = ReportBuffer(case.rows * layout.columns + 7, DEVICE)
    features = Settling(cast("Slots", slots), reports, at_once=at_once).settle(cycle, active)
    assert features is cycle.output.features
    return [reports.room(1, case.rows * layout.columns + 7), *contexts.told, *state._all]


def check(case: Case) -> None:
    ours, reference = settled(case, at_once=True), settled(case, at_once=False)
    for mine, other in zip(ours, reference, strict=True):
        assert mine.dtype is other.dtype
        assert torch.equal(mine, other)


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_cycles_end_as_they_would_in_steps(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("nodes", [0, 1, 3, 5])
def test_every_width_with_all_that_is_reported(nodes: int, size: int, absorbed: bool) -> None:
    for seed, dtype in enumerate((torch.float32, torch.bfloat16)):
        wanted = Wanted(3, 2, drafted=True)
        check(Case(seed, 3, nodes, wanted, True, True, absorbed, contexts=True, size=size, dtype=dtype))


def as_the_kernel_leaves_them(scores: Tensor, k: int, *, totals: bool = False) -> BestTokens:
    """`best_tokens` on a CUDA device: all are views of two tensors."""
    best = best_tokens(scores, max(k, 1), totals=True)
    assert best.totals is not None
    found = (
        torch.cat((best.scores, best.totals[..., None]), dim=-1).flatten(0, 1).unflatten(0, scores.shape[:2])
    )
    return BestTokens(best.ids[..., 0], best.ids[..., :k], found[..., :k], found[..., -1])


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(("rows", "nodes"), [(1, 0), (3, 0), (1, 4), (3, 4)])
def test_best_tokens_may_be_views(
    rows: int, nodes: int, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "best_tokens", as_the_kernel_leaves_them)
    check(Case(7, rows, nodes, wanted, covered=True, contexts=True))


def test_cases_are_of_all_kinds() -> None:
    """Else the comparisons would say little."""
    emitted, accepted = set(), set()
    for seed in range(40):
        case = Case(seed, 3, 3, contexts=True)
        report, _, counts, *_ = settled(case, at_once=True)
        accepted |= set(report[0, : 3 * case.layout.columns : case.layout.columns].tolist())
        emitted |= set(counts.tolist())
    assert accepted == {0, 1, 2, 3}
    assert emitted == {0, 1, 2, 3, 4}


def test_a_chain_is_followed_to_its_first_wrong_token() -> None:
    """Draft (b c d) and choices (b c x y): two are accepted; of a row that may emit two more, two count."""
    choices = torch.tensor([[2, 3, 8, 9], [2, 3, 8, 9]], device=DEVICE)
    draft = Draft(torch.tensor([[2, 3, 4], [2, 3, 4]], device=DEVICE), torch.tensor([3, 3], device=DEVICE))
    nothing = torch.zeros(2, 4, 0, device=DEVICE)
    state = state_of(Case(0, 2, 3))
    state.cached.fill_(100)
    state.remaining.copy_(torch.tensor([7, 2, 5, 5]))
    numbers = torch.zeros(2, 5, dtype=torch.int64, device=DEVICE)
    reported = Reported(numbers, None, best=0, traced=0, drafted=False, chosen=False)
    best = BestTokens(choices, nothing.long(), nothing, None)
    assert settle(draft, best, None, state, reported, absorbed=False).tolist() == [3, 2]
    assert numbers.tolist() == [[2, 2, 3, 8, 9]] * 2
    assert state.last[:2].tolist() == [8, 8]
    assert state.cached.tolist() == [103, 102, 100, 100]
    assert state.remaining.tolist() == [4, 0, 5, 5]
    with pytest.raises(ValueError, match="totals"):
        settle(draft, best, None, state, Reported(numbers, None, 1, 1, False, False), absorbed=False)
