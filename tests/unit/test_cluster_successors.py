"""Successor tables of the cluster: counted by the aligner, brought by versions, looked up by replicas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evospec.align.trace_codec import encode
from evospec.align.trainer import AlignmentTrainer
from evospec.engine.engine import Engine
from evospec.engine.request import Request
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.vocab.proposals import Origin
from evospec.vocab.statistical import StatisticalSource
from evospec.vocab.successor_table import SuccessorTable
from evospec.vocab.successors import SuccessorIndex, SuccessorLimits
from evospec.vocab.tenants import KEY_DIGITS, TenantIndexes, tenant_key
from tests.tiny import tiny_drafter, tiny_target
from tests.unit import align_tiny
from tests.unit.align_tiny import NO_PAST, learnable_trace, random_trace
from tests.unit.test_live_core import build, decode

VOCAB = 400
COMMON = np.arange(4)
LIMITS = SuccessorLimits(heads=20, successors=8, window=4, half_life=1000)
A, B = tenant_key("a"), tenant_key("b")


def table_of(*requests: list[int], vocab: int = VOCAB) -> SuccessorTable:
    index = SuccessorIndex(vocab, COMMON, LIMITS)
    for request in requests:
        index.learn(request)
    return index.table()


# --- tenants ---


def test_tenants_are_told_apart_whatever_they_are_called() -> None:
    names = ["", "a", "A", "a" * 10_000, "\udc80", "ä", A]
    keys = {tenant_key(name) for name in names}
    assert len(keys) == len(names)
    assert {len(key) for key in keys} == {KEY_DIGITS}


def test_the_tenant_heard_of_least_recently_is_forgotten() -> None:
    indexes = TenantIndexes(VOCAB, COMMON, LIMITS, most=2)
    for key in ("a", "b", "a", "c"):
        indexes.of(key).learn([10, 50])
    assert indexes.find("b") is None
    assert [len(indexes.of(key)) for key in ("a", "c")] == [1, 1]
    assert len(indexes) == 2


def test_tables_fit_into_the_bytes_given_and_tenants_share_them() -> None:
    indexes = TenantIndexes(VOCAB, COMMON, LIMITS, most=4)
    row = 8 + 8 * LIMITS.successors
    indexes.of("large").learn(list(range(10, 30)))
    indexes.of("small").learn([10, 50])
    indexes.of("silent")
    whole = indexes.tables(10**6)
    assert {key: len(table) for key, table in whole.items()} == {"large": 19, "small": 1}
    cut = indexes.tables(3 * 5 * row)
    assert {key: len(table) for key, table in cut.items()} == {"large": 5, "small": 1}
    assert indexes.tables(0) == {}


def test_what_is_taken_over_is_not_counted_twice_and_displaces_nobody() -> None:
    indexes = TenantIndexes(VOCAB, COMMON, LIMITS, most=2)
    indexes.of(A).learn([10, 50])
    earlier = table_of([10, 50], [10, 51])
    indexes.begin_with({A: earlier, B: earlier, "c": earlier})
    assert indexes.find("c") is None
    counts = {key: table.totals.tolist() for key, table in indexes.tables(10**6).items()}
    assert counts == {A: [1.0], B: pytest.approx([1.0 + 0.5 ** (1 / LIMITS.half_life)])}


# --- the aligner ---


def trainer_with(indexes: TenantIndexes | None, **settings: object) -> AlignmentTrainer:
    return AlignmentTrainer(
        align_tiny.tiny_config(**settings),
        align_tiny.tiny_drafter(),
        align_tiny.tiny_tables(),
        align_tiny.CORE,
        align_tiny.LIMITS,
        draft_length=3,
        successors=indexes,
    )


def indexes_of(most: int = 4) -> TenantIndexes:
    return TenantIndexes(align_tiny.VOCAB, align_tiny.CORE.numpy(), replace(LIMITS, heads=99), most)


def test_versions_bring_what_traces_taught_of_each_tenant() -> None:
    trainer = trainer_with(indexes_of())
    for seed, tenant in enumerate((A, A, B)):
        trainer.add(encode(replace(learnable_trace(seed), tenant=tenant)))
    tables = trainer.candidate(1).successors
    assert tables.keys() == {A, B}
    following = align_tiny.successor_map()
    for table in tables.values():
        for head in table.heads.tolist():
            nearest = int(following[head])
            if nearest >= len(align_tiny.CORE):  # what is always active is not counted
                assert nearest in table.look_up(np.array([head])).token_ids
    assert trainer_with(None).candidate(1).successors == {}


def test_no_room_for_tables_means_none() -> None:
    trainer = trainer_with(indexes_of(), successor_mb=0.0)
    trainer.add(learnable_trace(0))
    assert trainer.candidate(1).successors == {}


def test_a_token_that_two_windows_hold_is_counted_once() -> None:
    """Positions of context that the window before has scored are only what others follow."""
    trace = replace(random_trace(0, width=24, context=4), past=NO_PAST)
    first = replace(trace, start=0, prompt_length=5)
    later = replace(trace, start=20, prompt_length=5)
    assert (first.first_new, later.first_new) == (0, 5)
    assert replace(later, generated=np.zeros(24, bool)).first_new == 25
    added = []
    for each in (first, later):
        trainer = trainer_with(indexes_of())
        trainer.add(replace(first, token_ids=first.token_ids[::-1].copy()))  # so that heads are known
        before = trainer.candidate(1).successors[first.tenant].totals.sum()
        trainer.add(each)
        added.append(trainer.candidate(1).successors[first.tenant].totals.sum() - before)
    assert added[0] - added[1] == pytest.approx(5, abs=0.2)


def test_degenerate_traces_teach_nothing() -> None:
    trainer = trainer_with(indexes_of())
    trace = learnable_trace(0)
    trainer.add(replace(trace, token_ids=np.full_like(trace.token_ids, 150)))
    assert trainer.candidate(1).successors == {}


def test_a_restarted_aligner_goes_on_from_the_tables_of_the_last_version() -> None:
    first = trainer_with(indexes_of())
    for seed in range(4):
        first.add(learnable_trace(seed))
    sent = first.candidate(1)
    again = trainer_with(indexes_of())
    again.restore(AdapterWeights.from_bytes(sent.to_bytes(), 1, again.drafter))
    (table,), (taken,) = sent.successors.values(), again.candidate(2).successors.values()
    np.testing.assert_array_equal(taken.heads, table.heads)
    np.testing.assert_allclose(taken.counts, table.counts, rtol=1e-5)
    first.restore(sent)  # back from a revoked version: its own counts stand
    (kept,) = first.candidate(3).successors.values()
    np.testing.assert_array_equal(kept.totals, table.totals)


# --- a replica ---


def proposed(source: StatisticalSource, tenant: str, prompt: tuple[int, ...] = (10,)) -> dict[int, float]:
    source.admit(Request("r", prompt, tenant=tenant))
    found = source.propose()
    source.finish("r", learn=False)
    best: dict[int, float] = {}
    for token, score in zip(found.token_ids.tolist(), found.scores.tolist(), strict=True):
        best[token] = max(score, best.get(token, 0.0))
    return best


def test_a_tenant_s_table_is_looked_up_for_that_tenant_only() -> None:
    source = StatisticalSource(VOCAB, COMMON, LIMITS, tenants=2)
    source.adopt({A: table_of([10, 50]), B: table_of([10, 60])})
    assert proposed(source, "a").keys() == {50}
    assert proposed(source, "b").keys() == {60}
    assert proposed(source, "") == {}
    assert proposed(source, A) == {}  # a key is no name


def test_a_version_s_tables_replace_the_last_ones_and_leave_what_was_learned_here() -> None:
    source = StatisticalSource(VOCAB, COMMON, LIMITS, tenants=2)
    source.admit(Request("own", (10, 40), tenant="a"))
    source.finish("own", learn=True)
    source.study()
    source.adopt({A: table_of([10, 50])})
    assert proposed(source, "a").keys() == {40, 50}
    source.adopt({A: table_of([10, 60])})
    assert proposed(source, "a").keys() == {40, 60}
    source.adopt({})
    assert proposed(source, "a").keys() == {40}


def test_of_two_shares_the_larger_counts() -> None:
    """Both may stand for the same request: they are not added up."""
    source = StatisticalSource(VOCAB, COMMON, LIMITS, tenants=2)
    for number, text in enumerate([(10, 50), (10, 51), (10, 51), (10, 51)]):
        source.admit(Request(str(number), text, tenant="a"))
        source.finish(str(number), learn=True)
        source.study()
    source.propose()
    alone = proposed(source, "a")
    source.adopt({A: table_of([10, 50], [10, 51])})
    both = proposed(source, "a")
    assert both[51] == alone[51]
    assert both[50] == pytest.approx(2 * alone[50], rel=0.01)


def test_running_requests_profit_from_new_tables_at_once() -> None:
    source = StatisticalSource(VOCAB, COMMON, LIMITS, tenants=2)
    source.admit(Request("r", (5, 10), tenant="a"))
    source.emitted("r", [11])
    source.propose()
    source.adopt({A: table_of([10, 50], [11, 51]), B: table_of([10, 60])})
    assert set(source.propose().token_ids.tolist()) == {50, 51}


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return tiny_drafter(target)


def statistical(engine: Engine) -> set[int]:
    assert engine.vocabulary is not None
    return {slot.token_id for slot in engine.vocabulary.slots() if slot.origin is Origin.STATISTICAL}


# After each of the last prompt tokens of `decode`, a token that nothing else makes active.
BROUGHT = {head: 180 + head for head in range(60, 76)}
TABLE = table_of(*([head, token] for head, token in BROUGHT.items()), vocab=260)


def test_a_swap_brings_tables_into_a_running_engine_and_no_other_text(
    target: Target, drafter: Drafter
) -> None:
    undisturbed = decode(build(target, drafter), {})
    sent = AdapterWeights(1, {}, None, {tenant_key(""): TABLE, A: table_of([70, 239], vocab=260)})
    received = AdapterWeights.from_bytes(sent.to_bytes(), 1, drafter)
    plain, taught = build(target, drafter), build(target, drafter)
    assert decode(plain, {2: AdapterWeights(1, {})}) == undisturbed
    assert decode(taught, {2: taught.stage_adapter(received)}) == undisturbed
    assert len(statistical(taught) & set(BROUGHT.values())) > 8
    assert not statistical(plain) & set(BROUGHT.values())
    assert 239 not in statistical(taught)


def test_version_0_brings_no_tables(target: Target, drafter: Drafter) -> None:
    engine = build(target, drafter)
    engine.swap_adapter(AdapterWeights(1, {}, None, {tenant_key(""): TABLE}))
    engine.swap_adapter(None)
    decode(engine, {})
    assert not statistical(engine) & set(BROUGHT.values())
