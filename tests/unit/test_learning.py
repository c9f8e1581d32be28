"""Learning beside the device: in order for each request, and never far behind, however late the host is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from evospec.align.recorder import TraceRecorder
from evospec.align.window import Cycle
from evospec.config import EngineConfig
from evospec.engine.contexts import ContextVectors
from evospec.engine.controller import Controller
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners, Observer
from evospec.engine.plan import DraftPlan
from evospec.engine.request import Request, SamplingParams
from evospec.engine.spare_time import SpareTime
from evospec.models.adapter import AdapterWeights
from evospec.models.target import Target
from evospec.vocab.dynamic import DynamicVocabulary
from evospec.vocab.head_rows import HeadView
from evospec.vocab.semantic import SemanticSource
from evospec.vocab.static import StaticVocabulary
from tests.unit.test_engine_sizes import (
    FINGERPRINTS,
    ROUNDED,
    alone,
    decode,
    drafter_of,
    engine_of,
    requests,
    target,
    vocabulary_of,
)

__all__ = ["target"]

Choose = Callable[[Controller, int], DraftPlan]


def only(name: str) -> Choose:
    return lambda controller, rows: next(plan for plan in controller.plans if str(plan) == name)


def spare(monkeypatch: pytest.MonkeyPatch, next_balance: Callable[[], float]) -> None:
    """The account holds what it is told to, after each cycle."""

    def waited(self: SpareTime, seconds: float, *, late: bool) -> None:
        self.seconds = next_balance()

    monkeypatch.setattr(SpareTime, "waited", waited)


class Pupil:
    """Hears what every learner is told, and holds it against the order that each request has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: dict[tuple[str, str], list[int]] = {}  # by learner and request
        self.running: set[tuple[str, str]] = set()
        self._patch = monkeypatch
        self._after(DynamicVocabulary, "admit", lambda request: self._begin("rows", request.id))
        self._after(DynamicVocabulary, "emitted", self._rows)
        self._after(DynamicVocabulary, "finish", lambda name, learn: self._end("rows", name))
        self._after(TraceRecorder, "prompt", lambda name, *rest: self._begin("traces", name))
        self._after(TraceRecorder, "finish", lambda name: self._end("traces", name))
        self._after(SemanticSource, "admit", lambda request, vector: self._begin("index", request.id))
        self._after(SemanticSource, "emitted", lambda name, tokens, best: self._more("index", name, tokens))
        self._after(SemanticSource, "finish", lambda name, learn: self._end("index", name))
        recorded = TraceRecorder.emitted

        def traces(recorder: TraceRecorder, name: str, cycles: Iterable[Cycle]) -> None:
            known = list(cycles)
            for cycle in known:
                self._more("traces", name, cycle.tokens)
            recorded(recorder, name, known)

        monkeypatch.setattr(TraceRecorder, "emitted", traces)

    def _after(self, owner: type, name: str, told: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def call(learner: object, *arguments: object, **named: object) -> object:
            told(*arguments, **named)
            return original(learner, *arguments, **named)

        self._patch.setattr(owner, name, call)

    def _rows(self, emitted: dict[str, list[int]]) -> None:
        for name, tokens in emitted.items():
            self._more("rows", name, tokens)

    def _begin(self, learner: str, name: str) -> None:
        assert (learner, name) not in self.heard
        self.heard[learner, name] = []
        self.running.add((learner, name))

    def _more(self, learner: str, name: str, tokens: Iterable[int]) -> None:
        assert (learner, name) in self.running
        self.heard[learner, name].extend(tokens)

    def _end(self, learner: str, name: str) -> None:
        self.running.discard((learner, name))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), arrivals=st.integers(1, 6), earns=st.sampled_from([0.0, 0.3, 0.9]))
def test_each_learner_hears_of_each_request_in_order(
    target: Target, seed: int, arrivals: int, earns: float
) -> None:
    """Whatever is drafted from, whoever joins, ends or is cancelled, and however little time there is."""
    rng, asked = random.Random(seed), requests(14)
    leaving = frozenset(one.id for one in asked if rng.random() < 0.3)
    turn = rng.randrange(9)

    def choose(controller: Controller, rows: int) -> DraftPlan:
        nonlocal turn
        turn = rng.randrange(9) if rng.random() < 0.1 else turn
        return controller.plans[turn % len(controller.plans)]

    with pytest.MonkeyPatch.context() as patch:
        spare(patch, lambda: 1e-9 if rng.random() < earns else -1.0)
        patch.setattr(Controller, "choose", choose)
        pupil = Pupil(patch)
        engine = engine_of(target, "auto", 8, ROUNDED)
        vector = ContextVectors.vector

        def owned(contexts: ContextVectors, slot: int) -> object:
            assert any(state.slot == slot and state.running for state in engine._scheduler.running)
            return vector(contexts, slot)

        patch.setattr(ContextVectors, "vector", owned)
        decoded = decode(engine, asked, arrivals, leaving)
    assert pupil.running == set()
    for one in asked:
        text = list(decoded.texts[one.id])
        assert pupil.heard.get(("rows", one.id), []) == text
        assert pupil.heard.get(("index", one.id), []) == text
        if one.trace:
            assert pupil.heard.get(("traces", one.id), []) == text


@pytest.mark.parametrize("plan", ["chain-4", "chain-4-full", "plain"])
def test_a_host_that_never_has_time_stays_no_more_than_so_far_behind(
    target: Target, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    monkeypatch.setattr(Controller, "choose", lambda self, rows: only(plan)(self, rows))
    balance = iter([-1.0, 1e-9, *[-1.0] * 100_000])  # out of step: what is taught and what is recorded
    spare(monkeypatch, lambda: next(balance))
    engine = engine_of(target, "auto", 8, ROUNDED)
    observer = engine._stepper._observer
    waiting, untaught, unrecorded = requests(120), 0, 0
    while waiting or engine.has_work:
        while waiting and len(engine._scheduler.waiting) < 2:
            engine.admit(waiting.pop())
        engine.step()
        untaught, unrecorded = max(untaught, observer.untaught), max(unrecorded, observer.unrecorded)
    assert engine.stats.cycles > 100
    # A request's first token counts as a cycle: with all of them it is more than one a step.
    assert untaught <= 40
    assert unrecorded <= 100


@pytest.mark.parametrize(("balance", "cycles"), [(math.inf, 1), (1.0, 4)])
def test_where_time_is_scarce_several_cycles_are_learned_from_at_once(
    target: Target, monkeypatch: pytest.MonkeyPatch, balance: float, cycles: int
) -> None:
    spare(monkeypatch, lambda: balance)
    taught: list[int] = []
    teach = Observer.teach

    def count_cycles(observer: Observer) -> int:
        taught.append(observer.untaught)
        return teach(observer)

    monkeypatch.setattr(Observer, "teach", count_cycles)
    engine = engine_of(target, "chain", 1, ROUNDED)
    engine.admit(Request("r", tuple(range(20)), SamplingParams(max_tokens=130, ignore_eos=True)))
    while engine.has_requests:
        engine.step()
    steady = taught[2:]
    assert len(steady) > 10
    assert set(steady) == {cycles}


def test_a_swap_waits_for_no_learning_and_traces_say_which_version_drafted(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare(monkeypatch, lambda: -1.0)
    engine = engine_of(target, "chain", 2, ROUNDED)
    engine.admit(Request("r", tuple(range(20)), SamplingParams(max_tokens=130, ignore_eos=True)))
    observer = engine._stepper._observer
    while engine.stats.emitted_tokens < 30 or not observer.untaught:
        engine.step()
    left, emitted = observer.untaught, engine.stats.emitted_tokens
    engine.swap_adapter(AdapterWeights(7, {}))
    assert observer.untaught == left
    while engine.has_work:
        engine.step()
    first, second = engine.take_traces()
    assert emitted + 20 < second.start  # it is recorded after the swap, like the first one
    assert (first.adapter_version, second.adapter_version) == (0, 7)


def test_drafts_from_the_whole_head_are_held_against_the_active_rows_all_the_same(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In traces; in statistics, coverage is of drafts that the active rows bound."""
    monkeypatch.setattr(Controller, "choose", lambda self, rows: only("chain-4-full")(self, rows))
    engine = engine_of(target, "auto", 8, ROUNDED)
    decoded = decode(engine, requests(12), 12, frozenset())
    assert engine.stats.drafts > 0
    assert engine.stats.coverable_tokens == 0
    missed = np.concatenate([trace.missed[trace.generated] for trace in decoded.traces])
    assert 0 < missed.sum() < len(missed)


def test_only_a_vocabulary_that_leaves_rows_out_is_drafted_around(target: Target) -> None:
    def plans(vocabulary: StaticVocabulary | DynamicVocabulary) -> set[str]:
        config = EngineConfig(max_batch=8, max_length=160)
        learners = Learners(vocabulary=vocabulary)
        engine = Engine(target, drafter_of(target), config, FINGERPRINTS, learners=learners)
        return {str(plan) for plan in engine._stepper._controller.plans}

    whole = StaticVocabulary(HeadView(target.tables.head, None), target.vocab_size)
    assert "chain-5-full" not in plans(whole)
    assert "chain-5-full" in plans(vocabulary_of(target, 8, padded=True))


def test_drawn_drafts_from_changing_heads_are_sampled_exactly(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """900 answers of three tokens, against 900 that plain decoding samples."""
    turns = count()
    heads = [only("chain-4"), only("chain-4-full")]
    monkeypatch.setattr(Controller, "choose", lambda self, rows: heads[next(turns) % 2](self, rows))
    prompt = tuple(range(40, 60))

    def shares(engine: Engine, first_seed: int) -> dict[tuple[int, ...], int]:
        asked = [
            Request(
                str(seed),
                prompt,
                SamplingParams(temperature=1.0, top_k=2, seed=seed, max_tokens=3, ignore_eos=True),
                trace=False,
            )
            for seed in range(first_seed, first_seed + 900)
        ]
        texts = decode(engine, asked, 8, frozenset()).texts.values()
        return {text: list(texts).count(text) for text in set(texts)}

    drafter, vocabulary = drafter_of(target), vocabulary_of(target, 8, padded=True)
    config = EngineConfig(max_batch=8, max_length=160, draft_length=4, sampled_drafts="drawn", overlap="on")
    drawn = Engine(
        target, drafter, config, FINGERPRINTS, learners=Learners(vocabulary=vocabulary, ranked_k=4)
    )
    got = shares(drawn, 0)
    assert {"chain-4", "chain-4-full"} <= set(drawn.stats.cycles_per_plan)
    assert drawn.stats.accepted_tokens > 0
    plain = Engine(target, None, config, FINGERPRINTS)
    monkeypatch.undo()
    expected = shares(plain, 5_000)
    kinds = sorted(set(got) | set(expected))
    observed = np.array([[counts.get(kind, 0) for kind in kinds] for counts in (got, expected)])
    often = observed.sum(axis=0) >= 10
    assert chi2_contingency(observed[:, often]).pvalue > 1e-3


def test_plans_that_change_leave_sampled_texts_alone(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where drafts are not drawn, a seed gives its text from either head."""
    turns = count()
    monkeypatch.setattr(
        Controller, "choose", lambda self, rows: self.plans[next(turns) // 2 % len(self.plans)]
    )
    asked = [
        Request(one.id, one.prompt_ids, SamplingParams(temperature=0.8, seed=index, max_tokens=12))
        for index, one in enumerate(requests(16))
    ]
    engine = engine_of(target, "auto", 8, ROUNDED)
    assert decode(engine, asked, 4, frozenset()).texts == alone(target, asked)
    assert engine.stats.cycles_per_plan["chain-4-full"] > 0
