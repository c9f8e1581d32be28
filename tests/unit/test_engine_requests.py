"""Requests join, leave, stop and are refused exactly as asked."""

from __future__ import annotations

import random

import pytest

from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams, StepOutput
from evospec.errors import InvalidRequestError
from evospec.vocab.protocol import Ranked
from tests.tiny import tiny_target
from tests.unit.test_engine_exact import build

TARGET = tiny_target()
PROMPT = tuple(range(60, 80))
SHORT = SamplingParams(max_tokens=4)


def run(engine: Engine) -> dict[str, list[StepOutput]]:
    outputs: dict[str, list[StepOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens(outputs: list[StepOutput]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 7, 13])
def test_max_tokens_is_exact(limit: int) -> None:
    engine = build(TARGET, "evospec", 5)
    engine.admit(Request("r", PROMPT, SamplingParams(max_tokens=limit, ignore_eos=True)))
    outputs = run(engine)["r"]
    assert len(tokens(outputs)) == limit
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason == "length"


def test_end_of_sequence_ends_even_inside_an_accepted_run() -> None:
    plain = build(TARGET, None, 0)
    plain.admit(Request("r", PROMPT, SamplingParams(max_tokens=20, ignore_eos=True)))
    text = tokens(run(plain)["r"])
    stop = text[9]
    eos, TARGET.eos_ids = TARGET.eos_ids, frozenset({stop})
    try:
        engine = build(TARGET, "full", 5)
        engine.admit(Request("r", PROMPT, SamplingParams(max_tokens=20)))
        outputs = run(engine)["r"]
    finally:
        TARGET.eos_ids = eos
    assert tokens(outputs) == text[: text.index(stop) + 1]
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request("r", ()), "prompt"),
        (Request("r", (1, 260), SHORT), "prompt"),
        (Request("r", (-1,), SHORT), "prompt"),
        (Request("r", tuple([1] * 128)), "prompt"),
        (Request("r", (1, 2), SamplingParams(max_tokens=0)), "max_tokens"),
        (Request("r", (1, 2), SamplingParams(max_tokens=4, seed=2**63)), "seed"),
        (Request("r", (1, 2), SamplingParams(max_tokens=4, top_p=0.0)), "top_p"),
        (Request("r", (1, 2), SamplingParams(max_tokens=4, top_k=-1)), "top_k"),
        (Request("r", (1, 2), SamplingParams(max_tokens=4, temperature=float("nan"))), "temperature"),
        (Request("r", (1, 2), SamplingParams(max_tokens=4, temperature=-1.0)), "temperature"),
        (Request("r", (1, 2), SamplingParams(max_tokens=127)), "max_tokens"),
    ],
)
def test_what_can_never_be_served_is_refused(request_: Request, param: str) -> None:
    engine = build(TARGET, "evospec", 5)
    with pytest.raises(InvalidRequestError) as refused:
        engine.admit(request_)
    assert refused.value.param == param
    assert not engine.has_work


def test_a_prompt_that_just_fits_is_served() -> None:
    engine = build(TARGET, "evospec", 5)
    engine.admit(Request("r", tuple([5] * 108), SamplingParams(max_tokens=20, ignore_eos=True)))
    assert len(tokens(run(engine)["r"])) == 20


def test_a_running_id_is_refused() -> None:
    engine = build(TARGET, "evospec", 5)
    engine.admit(Request("r", PROMPT, SHORT))
    with pytest.raises(InvalidRequestError, match="running already"):
        engine.admit(Request("r", PROMPT, SHORT))


def test_seeded_sampling_is_the_same_alone_and_in_a_batch() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=11, max_tokens=24, ignore_eos=True)
    alone = build(TARGET, "full", 4)
    alone.admit(Request("r", PROMPT, params))
    expected = tokens(run(alone)["r"])
    crowd = build(TARGET, "full", 4)
    crowd.admit(Request("other", PROMPT[:7], SamplingParams(temperature=0.5, seed=3, max_tokens=40)))
    crowd.admit(Request("r", PROMPT, params))
    crowd.admit(Request("greedy", PROMPT[:3], SamplingParams(max_tokens=9)))
    assert tokens(run(crowd)["r"]) == expected
    other_seed = build(TARGET, "full", 4)
    other_seed.admit(Request("r", PROMPT, SamplingParams(temperature=1.0, seed=12, max_tokens=24)))
    assert tokens(run(other_seed)["r"]) != expected


def test_an_id_that_comes_back_brings_its_own_sampling() -> None:
    engine = build(TARGET, "full", 4)
    engine.admit(Request("r", PROMPT, SamplingParams(temperature=2.0, seed=5, max_tokens=12)))
    run(engine)
    engine.admit(Request("r", PROMPT, SamplingParams(max_tokens=12)))
    again = tokens(run(engine)["r"])
    plain = build(TARGET, None, 0)
    plain.admit(Request("r", PROMPT, SamplingParams(max_tokens=12)))
    assert again == tokens(run(plain)["r"])


def test_a_storm_of_requests_and_cancellations_leaks_nothing() -> None:
    """Outputs equal each request run alone; every slot, pin and id is free afterwards."""
    rng = random.Random(1)
    engine = build(TARGET, "evospec", 5)
    requests = [
        Request(
            str(index),
            tuple(rng.randrange(256) for _ in range(rng.randrange(1, 50))),
            SamplingParams(max_tokens=rng.randrange(1, 30), ignore_eos=rng.random() < 0.5),
        )
        for index in range(60)
    ]
    cancelled: set[str] = set()
    outputs: dict[str, list[StepOutput]] = {}
    waiting = list(requests)
    while engine.has_work or waiting:
        for _ in range(rng.randrange(3)):
            if waiting:
                engine.admit(waiting.pop(0))
        if rng.random() < 0.2:
            victim = str(rng.randrange(60))
            engine.cancel(victim)
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
            if output.finish_reason == "cancelled":
                cancelled.add(output.request_id)
    assert 0 < len(cancelled) < 60
    assert engine.stats.running == engine.stats.waiting == 0
    assert engine.stats.requests_finished + engine.stats.requests_cancelled == 60
    for request in requests:
        alone = build(TARGET, None, 0, max_batch=1)
        alone.admit(request)
        expected = tokens(run(alone)[request.id])
        got = tokens(outputs[request.id])
        assert got == expected[: len(got)] if request.id in cancelled else got == expected
    assert all(outputs[request.id][-1].finish_reason is not None for request in requests)


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize(("slots", "draft_length"), [(50, 0), (7, 3)], ids=["half run", "most wait"])
def test_a_hundred_that_leave_in_mid_stream_free_their_slots_within_two_cycles(
    slots: int, draft_length: int, overlap: str
) -> None:
    engine = build(TARGET, "evospec", draft_length, max_batch=slots, overlap=overlap)
    endless = SamplingParams(max_tokens=110, ignore_eos=True)
    for index in range(100):
        engine.admit(Request(str(index), PROMPT[: 5 + index % 9], endless))
    for _ in range(100):  # each needs a step for its prompt, or two
        if engine.stats.running < slots:
            engine.step()
    assert engine.stats.running == slots
    for index in range(100):
        engine.cancel(str(index))
    ended = [output.request_id for _ in range(2) for output in engine.step() if output.finish_reason]
    assert engine.stats.running == engine.stats.waiting == 0
    assert sorted(ended) == sorted(str(index) for index in range(100))
    engine.admit(Request("next", PROMPT, SHORT))
    assert len(tokens(run(engine)["next"])) == 4


@pytest.mark.parametrize(("draft_length", "cycles_report"), [(0, False), (3, True)])
def test_cycles_without_a_draft_report_no_better_tokens(
    draft_length: int, cycles_report: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do they need to: nobody scores the rows that those would be for."""
    engine = build(TARGET, "evospec", draft_length)
    vocabulary = engine.vocabulary
    assert vocabulary is not None
    reported: list[Ranked] = []
    emitted: list[int] = []
    monkeypatch.setattr(vocabulary, "ranked", reported.append)
    monkeypatch.setattr(vocabulary, "emitted", lambda tokens: emitted.extend(tokens["r"]))
    engine.admit(Request("r", PROMPT[:16], SamplingParams(max_tokens=12, ignore_eos=True)))
    outputs = run(engine)["r"]
    prompt, first, *cycles = reported
    assert prompt.counts == [8]  # its latest positions
    assert first.counts == [1]
    assert (len(cycles) > 0) == cycles_report
    assert emitted == tokens(outputs)


def test_outputs_say_which_tokens_were_active_and_counters_why_rows_are() -> None:
    engine = build(TARGET, "evospec", 3)
    engine.admit(Request("r", PROMPT[:16], SamplingParams(max_tokens=40, ignore_eos=True)))
    outputs = run(engine)["r"]
    assert all(len(output.covered) == len(output.tokens) for output in outputs)
    drafted = [output for output in outputs if output.drafted]
    assert sum(sum(output.covered) for output in drafted) == engine.stats.covered_tokens
    for output in drafted:
        assert all(output.covered[: output.accepted])  # what was drafted was active
    assert sum(engine.stats.rows_by_source.values()) == engine.stats.active_rows > 0
