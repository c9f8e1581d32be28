"""500 requests of all kinds through one engine: each gets what it gets alone, and nothing stays behind."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass

import numpy as np
import pytest

from evospec.align.recorder import TraceRecorder
from evospec.config import AlignmentConfig, EngineConfig, VocabularyConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.engine.state import RequestState
from evospec.models.target import Target
from evospec.vocab.policy import build_policy
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target

REQUESTS = 500
FINGERPRINTS = Fingerprints(target="t", drafter="d", tokenizer="k")


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, the step before which it comes, and how many tokens it stays for (None: to its end)."""

    request: Request
    arrives: int
    leaves_after: int | None


def visits() -> list[Visit]:
    rng = random.Random(0)
    shared = tuple(rng.randrange(256) for _ in range(70))
    made, step = [], 0
    for number in range(REQUESTS):
        begin = shared[: rng.choice([0, 0, 40, 70])]
        prompt = begin + tuple(rng.randrange(256) for _ in range(rng.randrange(1, 40)))
        sampling = SamplingParams(
            temperature=rng.choice([0.0, 0.0, 0.5, 1.0]),
            top_k=rng.choice([0, 0, 5]),
            top_p=rng.choice([1.0, 1.0, 0.7]),
            seed=number,
            max_tokens=rng.randrange(1, 25),
            ignore_eos=rng.random() < 0.5,
        )
        request = Request(str(number), prompt, sampling, trace=rng.random() < 0.7)
        leaves = rng.randrange(1, 8) if rng.random() < 0.15 else None
        step += rng.choice([0, 0, 0, 1, 2, 9])
        made.append(Visit(request, step, leaves))
    return made


def engine_of(target: Target, overlap: str) -> Engine:
    drafter = tiny_drafter(target)
    target.tap(drafter.config.tap_layers)
    vocabulary = build_policy(
        VocabularyConfig(capacity=120, core=32, half_life=4), target.tables, np.arange(260), [256], 7
    )
    return Engine(
        target,
        drafter,
        EngineConfig(max_batch=7, max_length=160, prefill_chunk=24, overlap=overlap),
        FINGERPRINTS,
        learners=Learners(
            vocabulary=vocabulary,
            ranked_k=4,
            prompt_ranked=8,
            trace_k=4,
            recorder=TraceRecorder(AlignmentConfig(trace_top_k=4), FINGERPRINTS),
        ),
    )


def alone(target: Target, made: list[Visit]) -> dict[str, tuple[int, ...]]:
    """Plain decoding, one request at a time."""
    engine = Engine(target, None, EngineConfig(max_batch=1, max_length=160), FINGERPRINTS)
    written: dict[str, tuple[int, ...]] = {}
    for visit in made:
        engine.admit(visit.request)
        while engine.has_work:
            for output in engine.step():
                written[output.request_id] = written.get(output.request_id, ()) + output.tokens
    return written


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_each_gets_what_it_gets_alone_and_nothing_stays_behind(overlap: str) -> None:
    target = tiny_target()
    made = visits()
    engine = engine_of(target, overlap)
    written: dict[str, tuple[int, ...]] = {visit.request.id: () for visit in made}
    patience = {visit.request.id: visit.leaves_after for visit in made}
    ended: list[str] = []
    waiting, step = list(made), 0
    while waiting or engine.has_work:
        while waiting and waiting[0].arrives <= step:
            engine.admit(waiting.pop(0).request)
        for output in engine.step():
            name = output.request_id
            written[name] += output.tokens
            limit = patience[name]
            if limit is not None and len(written[name]) >= limit:
                engine.cancel(name)
            if output.finish_reason is not None:
                ended.append(name)
        engine.take_traces()
        step += 1

    assert sorted(ended) == sorted(written)
    expected = alone(target, made)
    for visit in made:
        name, got = visit.request.id, written[visit.request.id]
        assert got == expected[name][: len(got)], visit
        if visit.leaves_after is None:
            assert got == expected[name], visit
    stats = engine.stats
    assert stats.requests_finished + stats.requests_cancelled == REQUESTS
    assert stats.requests_cancelled > 20
    assert stats.reused_prompt_tokens > 1_000
    assert (stats.running, stats.waiting) == (0, 0)
    gc.collect()
    assert [state for state in gc.get_objects() if isinstance(state, RequestState)] == []


def test_a_bug_in_slot_moves_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: a moved request's keys stay where they were."""
    monkeypatch.setattr("evospec.engine.slots.Slots.copy", lambda self, source, target, length: None)
    with pytest.raises(AssertionError):
        test_each_gets_what_it_gets_alone_and_nothing_stays_behind("off")
