"""Cycles rounded as for captured graphs: rows without a request, long spans, padded head. Same text.

On a machine with a CUDA device the graphs are captured, too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
import torch

from evospec.align.recorder import FEWEST_SCORED, TraceRecorder
from evospec.align.trace import Trace
from evospec.config import AlignmentConfig, EngineConfig, SemanticConfig, VocabularyConfig
from evospec.engine import learning, observer
from evospec.engine.controller import Controller
from evospec.engine.engine import Engine
from evospec.engine.host_copy import SentReport
from evospec.engine.learning import Learning
from evospec.engine.lessons import ReadPrompt
from evospec.engine.observer import Learners
from evospec.engine.passes import Launched, Step
from evospec.engine.request import Request, SamplingParams
from evospec.engine.runner import Runner
from evospec.engine.sizes import Sizes
from evospec.engine.spare_time import SpareTime
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.vocab.active import ActiveRows
from evospec.vocab.core import CoreLists
from evospec.vocab.dynamic import DynamicVocabulary
from evospec.vocab.head_rows import HeadView
from evospec.vocab.policy import dynamic_sources, row_budget
from evospec.vocab.semantic import SemanticSource
from evospec.wire import Fingerprints, TokenHits
from tests.tiny import tiny_drafter, tiny_model, tiny_tokenizer

FINGERPRINTS = Fingerprints(target="t", drafter="d", tokenizer="k")
ROUNDED = Sizes(rounded=True)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@dataclass(frozen=True, slots=True)
class Decoded:
    engine: Engine
    texts: dict[str, tuple[int, ...]]
    traces: list[Trace]


@pytest.fixture(scope="module", params=DEVICES)
def target(request: pytest.FixtureRequest) -> Target:
    return Target(tiny_model().to(request.param), tiny_tokenizer())


def drafter_of(target: Target) -> Drafter:
    drafter = tiny_drafter(target).to(target.device)
    target.tap(drafter.config.tap_layers)
    return drafter


def vocabulary_of(target: Target, max_batch: int, *, padded: bool) -> DynamicVocabulary:
    rows = ActiveRows(target.tables, capacity=120, half_life=4, padded=padded)
    config = VocabularyConfig(capacity=120, core=32, half_life=4)
    core = np.r_[np.arange(32), 256]
    sources = dynamic_sources(config, rows, core, max_batch)
    budget = row_budget(rows, core, row_seconds=0.0)
    return DynamicVocabulary(rows, CoreLists(core, np.arange(0)), sources, budget)


def engine_of(target: Target, drafting: str, max_batch: int, sizes: Sizes, overlap: str = "on") -> Engine:
    return Engine(
        target,
        drafter_of(target),
        EngineConfig(
            max_batch=max_batch,
            max_length=160,
            prefill_chunk=24,
            drafting=drafting,
            draft_length=4,
            tree_depth=3,
            tree_beam=4,
            tree_nodes=11,
            overlap=overlap,
        ),
        FINGERPRINTS,
        learners=Learners(
            vocabulary=vocabulary_of(target, max_batch, padded=sizes.rounded),
            ranked_k=4,
            prompt_ranked=8,
            recorder=TraceRecorder(AlignmentConfig(trace_top_k=6), FINGERPRINTS),
            trace_k=6,
            semantic=SemanticSource(SemanticConfig(refresh_tokens=8), range(32), "t"),
        ),
        sizes=sizes,
    )


def requests(count: int) -> list[Request]:
    rng = random.Random(count)
    return [
        Request(
            str(number),
            tuple(rng.randrange(256) for _ in range(rng.randrange(1, 60))),
            SamplingParams(max_tokens=rng.randrange(5, 40), ignore_eos=number % 2 == 0),
            trace=number % 3 > 0,
        )
        for number in range(count)
    ]


def decode(engine: Engine, asked: list[Request], arrivals: int, cancelled: frozenset[str]) -> Decoded:
    """`arrivals` requests come before each step; `cancelled` ones leave after 3 tokens."""
    texts: dict[str, tuple[int, ...]] = {request.id: () for request in asked}
    traces: list[Trace] = []
    waiting = list(asked)
    while waiting or engine.has_work:
        for request in waiting[:arrivals]:
            engine.admit(request)
        del waiting[:arrivals]
        for output in engine.step():
            texts[output.request_id] += output.tokens
            if output.request_id in cancelled and len(texts[output.request_id]) >= 3:
                engine.cancel(output.request_id)
        traces += engine.take_traces()
    return Decoded(engine, texts, traces)


def alone(target: Target, asked: list[Request]) -> dict[str, tuple[int, ...]]:
    """Plain decoding, one request at a time."""
    engine = Engine(target, None, EngineConfig(max_batch=1, max_length=160), FINGERPRINTS)
    texts: dict[str, tuple[int, ...]] = {}
    for request in asked:
        texts |= decode(engine, [request], 1, frozenset()).texts
    return texts


@pytest.mark.parametrize("drafting", ["chain", "tree", "auto"])
def test_preparing_leaves_no_trace(target: Target, drafting: str) -> None:
    asked = requests(5)
    engine = engine_of(target, drafting, 4, ROUNDED)
    engine.prepare()
    decoded = decode(engine, asked, arrivals=2, cancelled=frozenset())
    assert decoded.texts == alone(target, asked)
    assert engine.stats.cycles > 0


def test_prepared_sizes_are_all_that_short_requests_need(target: Target) -> None:
    engine = engine_of(target, "chain", 4, ROUNDED)
    engine.prepare()
    runner: Runner = engine._stepper.runner
    before = runner.captures
    assert (before > 0) == (target.device.type == "cuda")
    decode(engine, [replace(each, trace=True) for each in requests(6)], arrivals=2, cancelled=frozenset())
    assert runner.captures == before


@pytest.mark.parametrize("drafting", ["chain", "auto"])
def test_engines_prepared_for_long_requests_capture_nothing_more(target: Target, drafting: str) -> None:
    engine = engine_of(target, drafting, 2, ROUNDED)
    engine.prepare(longest=160)
    before = engine.captures
    assert (before > 0) == (target.device.type == "cuda")
    asked = [replace(each, trace=True) for each in requests(6)]
    longest = Request("long", tuple(range(1, 100)), SamplingParams(max_tokens=60, ignore_eos=True))
    decode(engine, [*asked, longest], arrivals=2, cancelled=frozenset())
    assert engine.captures == before


def test_cycles_that_catch_up_with_more_share_one_graph_of_the_target(target: Target) -> None:
    engine = engine_of(target, "auto", 2, ROUNDED)
    runner = engine._stepper.runner
    engine.prepare()
    plans, spans = engine._stepper._controller.plans, ROUNDED.usual_spans(512, 160)
    rows = ROUNDED.usual_rows(2)
    kept = [step for step in runner._kept_drafts if step.plan.depth]
    assert len(kept) == sum(plan.depth > 0 for plan in plans) * len(spans) * len(rows)
    assert all(step.pairs == 1 for step in kept)


def test_usual_spans_reach_the_longest_request() -> None:
    assert ROUNDED.usual_spans(200, 4096) == [256]
    assert ROUNDED.usual_spans(1000, 4096) == [256, 512, 1024]
    assert ROUNDED.usual_spans(5000, 700) == [256, 512, 700]


@pytest.mark.parametrize("drafting", ["chain", "tree", "auto"])
@pytest.mark.parametrize("count", [1, 3, 5, 11])
def test_rows_without_a_request_change_no_text(target: Target, count: int, drafting: str) -> None:
    asked = requests(count)
    decoded = decode(engine_of(target, drafting, 16, ROUNDED), asked, count, frozenset())
    assert decoded.texts == alone(target, asked)
    assert decoded.engine.stats.requests_finished == count
    assert decoded.engine.stats.cycles > 0


@pytest.mark.parametrize("drafting", ["chain", "tree"])
@pytest.mark.parametrize("arrivals", [1, 4])
def test_requests_that_join_leave_and_cancel(target: Target, arrivals: int, drafting: str) -> None:
    asked = requests(24)
    leaving = frozenset(request.id for request in asked if int(request.id) % 5 == 2)
    decoded = decode(engine_of(target, drafting, 11, ROUNDED), asked, arrivals, leaving)
    expected = alone(target, asked)
    for name, text in decoded.texts.items():
        assert text == expected[name][: len(text)]
        assert name in leaving or text == expected[name]
    stats = decoded.engine.stats
    assert stats.requests_cancelled > 0
    assert stats.requests_finished + stats.requests_cancelled == 24


@pytest.mark.parametrize("drafting", ["chain", "tree"])
def test_rounding_teaches_nothing_else(target: Target, drafting: str) -> None:
    """Traces, coverage and active rows are those of cycles that are as large as they need to be."""
    asked = requests(5)
    exact = decode(engine_of(target, drafting, 16, Sizes(rounded=False), "off"), asked, 2, frozenset())
    rounded = decode(engine_of(target, drafting, 16, ROUNDED, "off"), asked, 2, frozenset())
    assert len(exact.traces) == len(rounded.traces) == 3
    for left, right in zip(exact.traces, rounded.traces, strict=True):
        assert left.token_ids.tolist() == right.token_ids.tolist()
        assert left.top_ids.tolist() == right.top_ids.tolist()
        assert left.missed.tolist() == right.missed.tolist()
        assert left.accepted.tolist() == right.accepted.tolist()
        np.testing.assert_allclose(
            left.top_logprobs.astype(np.float32), right.top_logprobs.astype(np.float32), atol=2e-2
        )
    before, after = exact.engine.stats, rounded.engine.stats
    assert (before.covered_tokens, before.coverable_tokens) == (after.covered_tokens, after.coverable_tokens)
    assert before.accepted_tokens == after.accepted_tokens
    assert before.active_rows == after.active_rows
    assert before.vocabulary_rows_changed == after.vocabulary_rows_changed


def test_tokens_are_covered_by_the_rows_that_drafted_them(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bookkeeping runs while the cycle does; what it changes must not count for that cycle."""
    monkeypatch.setattr(Learning, "fits", lambda self, seconds: True)  # else it comes behind the next launch
    vocabulary = vocabulary_of(target, 4, padded=True)
    engine = Engine(
        target,
        drafter_of(target),
        EngineConfig(max_batch=4, max_length=160, drafting="chain", draft_length=4),
        FINGERPRINTS,
        learners=Learners(vocabulary=vocabulary, ranked_k=4),
        sizes=ROUNDED,
    )
    engine.admit(Request("r", tuple(range(40, 60)), SamplingParams(max_tokens=60, ignore_eos=True)))
    engine.step()
    changed = 0
    while engine.has_requests:
        active = vocabulary.head().active
        assert active is not None
        drafted_with = active.clone()
        covered, rows = engine.stats.covered_tokens, engine.stats.vocabulary_rows_changed
        (output,) = engine.step()
        if output.drafted:
            expected = int(drafted_with[list(output.tokens)].sum())
            assert engine.stats.covered_tokens - covered == expected
        changed += engine.stats.vocabulary_rows_changed > rows
    assert changed > 5
    assert engine.stats.covered_tokens < engine.stats.coverable_tokens


@pytest.mark.parametrize(
    ("fits", "expected"),
    [(True, ["apply", "launch", "record", "finish"]), (False, ["launch", "apply", "record", "finish"])],
)
def test_bookkeeping_runs_while_the_device_works(
    target: Target, monkeypatch: pytest.MonkeyPatch, fits: bool, expected: list[str]
) -> None:
    """While a cycle is under way, the last one is learned from and the next one launched, which is not
    kept waiting; only then is anything waited for."""
    order: list[str] = []

    def noted(owner: type, name: str, label: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: object, **named: object) -> object:
            order.append(label)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(SpareTime, "waited", lambda self, seconds, *, late: None)  # always enough of it
    monkeypatch.setattr(Learning, "fits", lambda self, seconds: fits)
    engine = engine_of(target, "chain", 2, ROUNDED)
    engine.admit(Request("r", (5, 6, 7), SamplingParams(max_tokens=40, ignore_eos=True)))
    engine.step()
    noted(Runner, "launch", "launch")
    noted(DynamicVocabulary, "apply", "apply")
    noted(Learning, "record_beside", "record")
    noted(Runner, "finish", "finish")
    engine.step()
    engine.step()
    assert order == expected * 2


def test_teaching_is_expected_to_take_what_it_took_lately(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(learning, "perf_counter", lambda: now)
    taking = 1.0

    def apply(vocabulary: DynamicVocabulary) -> int:
        nonlocal now
        now += taking
        return 0

    monkeypatch.setattr(DynamicVocabulary, "apply", apply)
    monkeypatch.setattr(SpareTime, "took", lambda self, seconds: None)
    engine = engine_of(target, "chain", 2, ROUNDED)
    engine.admit(Request("r", (5, 6, 7), SamplingParams(max_tokens=90, ignore_eos=True)))
    known = engine._stepper._learning
    assert known.fits(0.0)
    for _ in range(4):
        engine.step()
    assert known.fits(1.0)
    assert not known.fits(0.9)
    taking = 0.1
    for _ in range(3):
        engine.step()
    assert known.fits(0.9)
    assert not known.fits(0.1)
    known._observer._untaught.prompts.append(ReadPrompt(requests(1)[0], None, None, None, None))
    assert not known.fits(9.0)


@pytest.mark.parametrize("late", [False, True])
def test_an_id_that_comes_back_at_once_is_learned_from_in_order(
    target: Target, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """What its first life taught waits when its second begins; a host that is late learns part by part."""
    monkeypatch.setattr(SentReport, "late", property(lambda _: late))
    engine = engine_of(target, "chain", 4, ROUNDED)
    engine.admit(Request("long", (1, 2, 3), SamplingParams(max_tokens=100, ignore_eos=True)))
    prompts = [tuple(range(start, start + 20)) for start in (30, 90, 150)]
    lives = [Request("r", prompt, SamplingParams(max_tokens=12, ignore_eos=True)) for prompt in prompts]
    texts: list[tuple[int, ...]] = []
    for life in lives:
        engine.admit(life)
        text: tuple[int, ...] = ()
        while len(text) < 12:
            text += sum((output.tokens for output in engine.step() if output.request_id == "r"), ())
        texts.append(text)
    engine.cancel("long")
    while engine.has_work:
        engine.step()
    assert texts == [alone(target, [life])["r"] for life in lives]
    recorded = [trace.token_ids.tolist() for trace in engine.take_traces()]
    for prompt, text in zip(prompts, texts, strict=True):
        assert [*prompt, *text] in recorded
    assert len(engine.take_points()) == 3  # a cancelled request leaves none


def test_plans_and_heads_that_change_from_cycle_to_cycle(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every plan in turn, whatever it is worth: texts stay those of plain decoding, and all is learned."""
    turns = count()
    monkeypatch.setattr(
        Controller, "choose", lambda self, rows: self.plans[next(turns) // 2 % len(self.plans)]
    )
    asked = requests(20)
    engine = engine_of(target, "auto", 8, ROUNDED)
    decoded = decode(engine, asked, 3, frozenset())
    assert decoded.texts == alone(target, asked)
    assert engine.stats.cycles_per_plan["chain-4-full"] > 3
    learned = sorted(tuple(trace.token_ids[1:][trace.generated].tolist()) for trace in decoded.traces)
    texts = [decoded.texts[one.id] for one in asked if one.trace]
    assert learned == sorted(text for text in texts if len(text) >= FEWEST_SCORED)


def test_a_late_host_learns_of_every_token_all_the_same(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(9)
    usual = decode(engine_of(target, "chain", 4, ROUNDED), asked, 1, frozenset())
    monkeypatch.setattr(SentReport, "late", property(lambda _: True))
    late = decode(engine_of(target, "chain", 4, ROUNDED), asked, 1, frozenset())
    assert late.texts == usual.texts

    def learned(decoded: Decoded) -> list[list[int]]:
        return sorted(trace.token_ids.tolist() for trace in decoded.traces)

    assert learned(late) == learned(usual)


def test_requests_that_come_while_recording_is_behind_are_not_traced(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(24)
    usual = decode(engine_of(target, "chain", 4, ROUNDED), asked, 1, frozenset())
    monkeypatch.setattr(SentReport, "late", property(lambda _: True))
    monkeypatch.setattr(observer, "_TOO_MANY", 2)
    engine = engine_of(target, "chain", 4, ROUNDED)
    late = decode(engine, asked, 1, frozenset())
    assert late.texts == usual.texts
    wanting = sum(one.trace for one in asked)
    assert 0 < engine.stats.requests_untraced < wanting
    whole = {trace.token_ids.tobytes() for trace in usual.traces}
    assert {trace.token_ids.tobytes() for trace in late.traces} < whole


def test_a_padded_head_never_drafts_padding(target: Target) -> None:
    vocabulary = vocabulary_of(target, 4, padded=True)
    head = vocabulary.head()
    assert head.rows.shape[0] == 120
    assert head.count == 33
    states = torch.randn(50, target.hidden_size, generator=torch.Generator().manual_seed(0))
    scores = head.score(states.to(target.device))
    assert torch.isneginf(scores[:, 33:]).all()
    assert torch.isfinite(scores[:, :33]).all()
    exact = vocabulary_of(target, 4, padded=False).head()
    assert exact.rows.shape[0] == 33


@pytest.mark.parametrize(
    ("running", "rows"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 24), (30, 30)]
)
def test_rows_are_rounded_to_few_sizes(running: int, rows: int) -> None:
    assert ROUNDED.rows(running, 30) == rows
    assert Sizes(rounded=False).rows(running, 30) == running


def test_a_first_token_waits_for_no_cycle_and_its_prompt_is_drafted_from_at_once(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that processes a prompt launches a cycle, from rows that hold the prompt's tokens, and
    leaves it to the next one."""
    engine = engine_of(target, "chain", 2, ROUNDED)
    drafted: list[set[int]] = []
    launch = Runner.launch

    def noted(runner: Runner, step: Step, head: HeadView) -> Launched:
        assert head.active is not None
        drafted.append(set(head.active.nonzero()[:, 0].tolist()))
        return launch(runner, step, head)

    monkeypatch.setattr(Runner, "launch", noted)
    prompt = tuple(range(100, 120))
    engine.admit(Request("r", prompt, SamplingParams(max_tokens=20, ignore_eos=True)))
    (first,) = engine.step()
    assert len(first.tokens) == 1
    assert len(drafted) == 1
    assert drafted[0].issuperset(prompt)
    assert engine.stats.cycles == 0
    (second,) = engine.step()
    assert second.drafted
    assert engine.stats.cycles == 1


def test_learning_what_an_index_found_is_expected_to_take_longer(target: Target) -> None:
    engine = engine_of(target, "chain", 2, ROUNDED)
    engine.admit(Request("r", (5, 6, 7), SamplingParams(max_tokens=90, ignore_eos=True)))
    for _ in range(8):  # prompts are learned from within four cycles
        engine.step()
    known = engine._stepper._learning
    assert known.fits(9.0)
    engine.offer_hits("r", TokenHits((90, 91), (1.0, 0.5)))
    assert not known.fits(9.0)
    for _ in range(4):
        engine.step()
    assert known.fits(9.0)
    assert engine.vocabulary is not None
    active = engine.vocabulary.head().active
    assert active is not None
    assert active[[90, 91]].all()
