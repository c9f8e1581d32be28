"""The active-row buffer keeps its invariants under any sequence of operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.config import VocabularyConfig
from evospec.engine.request import Request
from evospec.errors import EvoSpecError
from evospec.models.tables import TokenTables
from evospec.vocab.active import ActiveRows
from evospec.vocab.core import CoreLists, core_tokens
from evospec.vocab.dynamic import DynamicVocabulary
from evospec.vocab.policy import build_policy, dynamic_sources, row_budget
from evospec.vocab.policy_name import PolicyName
from evospec.vocab.proposals import Origin, Proposals
from evospec.vocab.protocol import Ranked

VOCAB, CAPACITY = 50, 12
HEAD = torch.arange(VOCAB, dtype=torch.float32)[:, None].expand(VOCAB, 3).contiguous()

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=20)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("activate"), tokens),
        st.tuples(st.just("pin"), tokens),
        st.tuples(st.just("unpin"), tokens),
        st.tuples(st.just("tick"), tokens),
        st.tuples(st.just("deactivate"), tokens),
    ),
    max_size=40,
)


def dynamic(
    rows: ActiveRows,
    core: np.ndarray,
    config: VocabularyConfig,
    max_batch: int,
    frequent: Sequence[int] = (),
) -> DynamicVocabulary:
    sources = dynamic_sources(config, rows, core, max_batch)
    budget = row_budget(rows, core, row_seconds=0.0)
    return DynamicVocabulary(rows, CoreLists(core, np.array(frequent, dtype=np.int64)), sources, budget)


def check_invariants(rows: ActiveRows) -> None:
    rows.write()
    view = rows.view()
    assert view.ids is not None
    assert view.active is not None
    ids = view.ids.numpy()
    assert rows.count == len(ids) == len(set(ids.tolist())) <= CAPACITY
    assert torch.equal(view.rows, HEAD[view.ids])
    assert sum(rows.sources().values()) == rows.count
    assert set(view.active.nonzero().flatten().tolist()) == set(ids.tolist())
    assert set(np.flatnonzero(rows.contains(np.arange(VOCAB))).tolist()) == set(ids.tolist())


@settings(max_examples=150, deadline=None)
@given(operations)
def test_rows_ids_and_membership_always_agree(steps: list[tuple[str, list[int]]]) -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), CAPACITY, half_life=3)
    pinned: dict[int, int] = {}
    for name, chosen in steps:
        distinct = np.unique(np.asarray(chosen, dtype=np.int64))
        active = distinct[rows.contains(distinct)] if len(distinct) else distinct
        if name == "activate":
            before = rows.epoch
            written = rows.activate(np.asarray(chosen, dtype=np.int64), 1.0)
            assert (rows.epoch > before) == (written > 0)
        elif name == "pin":
            rows.pin(active)
            for token in active.tolist():
                pinned[token] = pinned.get(token, 0) + 1
        elif name == "unpin":
            held = np.asarray([token for token in active.tolist() if pinned.get(token)], dtype=np.int64)
            rows.unpin(held)
            for token in held.tolist():
                pinned[token] -= 1
        elif name == "deactivate":
            rows.deactivate(distinct)
            left = distinct[rows.contains(distinct)].tolist()
            assert all(pinned.get(token) for token in left)
        else:
            rows.tick()
        check_invariants(rows)
        kept = [token for token, count in pinned.items() if count]
        assert rows.contains(np.asarray(kept, dtype=np.int64)).all()


def test_the_least_wanted_row_is_evicted_first() -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), CAPACITY, half_life=1)
    rows.activate(np.arange(CAPACITY), np.linspace(1.0, 2.0, CAPACITY))
    assert rows.activate(np.array([40]), 1.5) == 1
    assert not rows.contains(np.array([0])).any()
    assert rows.activate(np.array([41]), 0.1) == 0  # worth less than all that is there
    for _ in range(8):
        rows.tick()
    assert rows.activate(np.array([41]), 0.1) == 1  # by now the others have decayed


origins = st.sampled_from([Origin.FREQUENT, Origin.CONTEXT, Origin.VERIFICATION, Origin.STATISTICAL])
wishes = st.dictionaries(
    origins, st.lists(st.tuples(st.integers(0, VOCAB - 1), st.sampled_from([0.25, 0.5, 1.0])), max_size=12)
)


@settings(max_examples=150, deadline=None)
@given(cycles=st.lists(wishes.filter(bool), max_size=6))
def test_a_row_has_its_best_score_and_the_origin_that_gave_it(
    cycles: list[dict[Origin, list[tuple[int, float]]]],
) -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), capacity=VOCAB, half_life=4)
    expected: dict[int, tuple[float, Origin]] = {}
    for cycle in cycles:
        rows.tick()
        expected = {token: (score * 0.5**0.25, origin) for token, (score, origin) in expected.items()}
        best: dict[int, tuple[float, Origin]] = {}
        for origin, wanted in cycle.items():
            for token, score in wanted:
                if score > best.get(token, (0.0, origin))[0]:
                    best[token] = score, origin
        for token, (score, origin) in best.items():
            if score >= expected.get(token, (0.0, origin))[0] - 1e-9:
                expected[token] = score, origin
        rows.propose(
            {
                origin: Proposals.of([token for token, _ in wanted], np.array([score for _, score in wanted]))
                for origin, wanted in cycle.items()
            }
        )
    found = {slot.token_id: slot for slot in rows.slots()}
    assert set(found) == set(expected)
    for token, (score, origin) in expected.items():
        assert found[token].score == pytest.approx(score)
        assert found[token].origin == origin


def test_a_full_and_pinned_buffer_refuses_and_counts() -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), CAPACITY, half_life=1)
    rows.activate(np.arange(CAPACITY), 1.0)
    rows.pin(np.arange(CAPACITY))
    assert rows.activate(np.array([30, 31]), 9.0) == 0
    assert rows.refused == 2


def test_unpin_without_pin_is_an_error() -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), CAPACITY, half_life=1)
    rows.activate(np.array([3]), 1.0)
    with pytest.raises(ValueError, match="without a pin"):
        rows.unpin(np.array([3]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), tokens), max_size=30))
def test_requests_come_and_go_without_leaking_pins(events: list[tuple[str, list[int]]]) -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), CAPACITY, half_life=3)
    core = np.arange(4)
    config = VocabularyConfig(capacity=64, core=4, context_window=8)
    vocabulary = dynamic(rows, core, config, max_batch=2)
    running: set[str] = set()
    for request, chosen in events:
        if request not in running:
            vocabulary.admit(Request(request, tuple(chosen)))
            running.add(request)
        elif chosen:
            vocabulary.emitted({request: chosen})
            vocabulary.ranked(Ranked([request], [1], np.asarray([chosen[:2] * 2], dtype=np.int64)))
        else:
            vocabulary.finish(request, learn=True)
            running.remove(request)
        vocabulary.apply()
        check_invariants(rows)
        assert rows.contains(core).all()
    for request in running:
        vocabulary.finish(request, learn=True)
    fresh = np.arange(20, 20 + CAPACITY - len(core))
    rows.activate(fresh, 1e9)
    assert rows.contains(fresh).all()  # only the core is still pinned


def test_emitted_tokens_are_active_in_the_next_cycle() -> None:
    rows = ActiveRows(TokenTables(HEAD, HEAD), CAPACITY, half_life=3)
    vocabulary = dynamic(rows, np.arange(4), VocabularyConfig(capacity=64, core=4), max_batch=1)
    vocabulary.admit(Request("r", (30, 31)))
    vocabulary.emitted({"r": [44]})
    vocabulary.apply()
    active = vocabulary.head().active
    assert active is not None
    assert active[[30, 31, 44]].tolist() == [1, 1, 1]


def test_core_falls_back_to_low_ids_and_keeps_what_is_required() -> None:
    core = core_tokens(np.array([9, 3]), size=5, vocab_size=VOCAB, always=[49, 3])
    assert core.tolist() == [49, 3, 9, 0, 1, 2]


@pytest.mark.parametrize("text", ["", "evo", "fr-spec", "fr-spec:", "fr-spec:0", "fr-spec:x", "full:3"])
def test_an_unknown_policy_is_named(text: str) -> None:
    with pytest.raises(EvoSpecError, match="unknown vocabulary policy"):
        PolicyName.parse(text)


def test_a_static_list_scores_exactly_its_rows() -> None:
    tables = TokenTables(HEAD, HEAD)
    settings_ = VocabularyConfig(policy="fr-spec:5")
    policy = build_policy(settings_, tables, np.array([7, 8, 9]), always=[49], max_batch=1)
    head = policy.head()
    assert head.ids is not None
    assert set(head.ids.tolist()) == {49, 7, 8, 9, 0, 1}
    assert torch.equal(head.rows, HEAD[head.ids])
    assert head.active is not None
    assert head.active[[7, 10]].tolist() == [1, 0]
