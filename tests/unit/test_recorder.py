"""The recorder: windows that line up with what the engine did, bounded in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evospec.align.recorder import FEWEST_SCORED, TraceRecorder
from evospec.align.trace import Trace, floats_of
from evospec.align.trace_check import check
from evospec.align.trace_codec import decode, encode
from evospec.align.window import Cycle, RequestPast, Stamp
from evospec.vocab.tenants import tenant_key
from tests.unit.align_tiny import (
    FINGERPRINTS,
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    LIMITS,
    PAST,
    POSITIONS,
    TAPS,
    TOP_K,
    VOCAB,
    tiny_config,
    traces_equal,
)

FEATURES = TAPS * HIDDEN
NO_STAMP = Stamp()


class FakeEngine:
    """Reports made-up requests; the feature of position p is filled with p, so rows can be recognised."""

    def __init__(
        self,
        recorder: TraceRecorder,
        request_id: str = "r",
        prompt: int = 10,
        seed: int = 0,
        device: str = "cpu",
        stamp: Stamp = NO_STAMP,
    ) -> None:
        self.recorder = recorder
        self.stamp = stamp
        self.request_id = request_id
        self.rng = np.random.default_rng(seed)
        self.tokens: list[int] = self.rng.integers(0, VOCAB, prompt).tolist()
        self.prompt_length = prompt
        self.draft_position: dict[int, int] = {}  # by index of the emitted token
        self.accepted: dict[int, bool] = {}
        self.missed: dict[int, bool] = {}
        self.top_ids: dict[int, np.ndarray] = {}
        self.device = device
        self.context = torch.nn.functional.normalize(torch.tensor(self.rng.normal(size=HIDDEN)), dim=0)

    def features(self, positions: Sequence[int]) -> Tensor:
        column = torch.tensor(list(positions), dtype=torch.float32, device=self.device)[:, None]
        return column.expand(-1, FEATURES)

    def past(self, positions: int) -> RequestPast:
        return replace(request_past(positions), stamp=self.stamp)

    def start(self, prompt_rows: int | None = None) -> FakeEngine:
        known = self.prompt_length - 1
        rows = known if prompt_rows is None else min(prompt_rows, known)
        features = self.features(range(known - rows, known))
        self.recorder.prompt(self.request_id, self.tokens, features, self.past(known), self.context, "")
        self.emit(1, drafted=0, accepted=0)
        return self

    def emit(self, count: int, drafted: int, accepted: int) -> None:
        last = len(self.tokens) - 1
        fresh = self.rng.integers(0, VOCAB, count).tolist()
        top = np.stack([self.rng.choice(VOCAB, TOP_K, replace=False) for _ in range(count)])
        missed = self.rng.random(count) < 0.3
        for index in range(count):
            at = last + 1 + index
            self.draft_position[at] = index if index < drafted else -1
            self.accepted[at] = index < accepted
            self.missed[at] = bool(missed[index])
            self.top_ids[at] = top[index]
        self.tokens += fresh
        self.recorder.emitted(
            self.request_id,
            [
                Cycle(
                    features=self.features(range(last, last + count)),
                    tokens=fresh,
                    top_ids=top,
                    top_logprobs=np.tile(np.log(np.arange(1, TOP_K + 1) / 20)[::-1], (count, 1)),
                    drafted=drafted,
                    accepted=accepted,
                    missed=missed,
                    past=self.past(max(last - 2, 0)),  # some pairs wait to be written
                )
            ],
        )

    def run(self, cycles: Sequence[tuple[int, int]]) -> FakeEngine:
        for drafted, accepted in cycles:
            self.emit(accepted + 1, drafted, accepted)
        return self

    def verify(self, trace: Trace) -> None:
        """Every row of a trace says of its position what was reported of it."""
        check(trace, LIMITS)
        width = trace.width
        assert trace.token_ids.tolist() == self.tokens[trace.start : trace.start + width + 1]
        bits = torch.from_numpy(trace.features.astype(np.int32)).to(torch.int16).view(torch.bfloat16)
        expected = torch.arange(trace.start, trace.start + width).to(torch.bfloat16)
        assert torch.equal(bits, expected[:, None].expand(width, FEATURES))
        torch.testing.assert_close(
            floats_of(trace.context), self.context.float().numpy(), rtol=2**-8, atol=0.0
        )
        past = floats_of(trace.past)
        assert (past == np.arange(trace.past_pairs)[:, None]).all()
        late = max(8 - self.recorder.context, 0)  # pairs that the last cycle wrote, and those that wait
        assert trace.past_pairs >= min(trace.start, PAST) - late
        for row in range(width):
            at = trace.start + row + 1
            if not trace.generated[row]:
                assert (trace.draft_position[row], trace.accepted[row], trace.missed[row]) == (
                    -1,
                    False,
                    False,
                )
                assert not trace.top_ids[row].any()
                continue
            assert trace.draft_position[row] == self.draft_position[at]
            assert trace.accepted[row] == self.accepted[at]
            assert trace.missed[row] == self.missed[at]
            assert trace.top_ids[row].tolist() == self.top_ids[at].tolist()


def request_past(positions: int) -> RequestPast:
    """Of a request's first positions, filled with their numbers, as far as traces here bring them."""
    pairs = torch.arange(min(positions, PAST)).to(torch.bfloat16)[:, None]
    return RequestPast(0, pairs.expand(2, KV_HEADS, -1, HEAD_DIM))


def recorder(**settings: object) -> TraceRecorder:
    return TraceRecorder(tiny_config(**settings), FINGERPRINTS)


def scored_tokens(traces: Sequence[Trace]) -> list[int]:
    """Indexes of the tokens that traces score, in order."""
    return [int(t.start + row + 1) for t in traces for row in np.flatnonzero(t.generated)]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(0, 40),
    st.lists(st.integers(0, 5).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d))), max_size=60),
    st.sampled_from([8, 9, 16, 64]),
)
def test_windows_score_every_emitted_token_once(
    prompt: int, prompt_rows: int, cycles: list[tuple[int, int]], positions: int
) -> None:
    recorded = recorder(trace_positions=positions)
    engine = FakeEngine(recorded, prompt=prompt).start(prompt_rows).run(cycles)
    recorded.finish("r")
    traces = recorded.take()
    for trace in traces:
        engine.verify(trace)
        assert trace.width <= positions
        assert int((~trace.generated).sum()) <= recorded.context
        assert traces_equal(decode(encode(trace), LIMITS), trace)
    scored = scored_tokens(traces)
    assert scored == list(range(prompt, prompt + len(scored)))
    assert len(engine.tokens) - prompt - len(scored) < FEWEST_SCORED
    assert recorded.counts.recorded == len(traces)


def test_first_window_starts_with_the_end_of_the_prompt() -> None:
    recorded = recorder(trace_positions=16)
    engine = FakeEngine(recorded, prompt=10).start().run([(5, 3)] * 2)
    recorded.finish("r")
    (trace,) = recorded.take()
    engine.verify(trace)
    assert (recorded.context, trace.start, trace.width) == (4, 5, 13)
    assert trace.generated.tolist() == [False] * 4 + [True] * 9
    assert trace.draft_position.tolist() == [-1] * 5 + [0, 1, 2, 3] * 2
    assert trace.accepted.tolist() == [False] * 5 + [True, True, True, False] * 2


def test_bonus_tokens_were_not_drafted() -> None:
    recorded = recorder()
    FakeEngine(recorded).start().run([(2, 2), (0, 0), (3, 0)])
    recorded.finish("r")
    (trace,) = recorded.take()
    scored = trace.generated
    assert trace.draft_position[scored].tolist() == [-1, 0, 1, -1, -1, 0]
    assert trace.accepted[scored].tolist() == [False, True, True, False, False, False]


def test_a_request_may_end_inside_an_accepted_run() -> None:
    recorded = recorder()
    engine = FakeEngine(recorded).start()
    engine.emit(3, drafted=5, accepted=5)
    recorded.finish("r")
    (trace,) = recorded.take()
    engine.verify(trace)
    assert trace.accepted[trace.generated].tolist() == [False, True, True, True]


def test_later_windows_overlap_by_context() -> None:
    recorded = recorder(trace_positions=16)
    engine = FakeEngine(recorded, prompt=3).start().run([(5, 5)] * 7)
    first, second, third = recorded.take()
    for trace in (first, second, third):
        engine.verify(trace)
        assert trace.width == 16
    assert second.start == first.start + 12
    assert third.start == second.start + 12
    assert not second.generated[:4].any()
    assert second.generated[4:].all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.lists(st.integers(0, 5), max_size=40), st.sampled_from([16, 17, 64]))
def test_what_is_new_in_windows_is_the_request_once(prompt: int, cycles: list[int], positions: int) -> None:
    recorded = recorder(trace_positions=positions)
    engine = FakeEngine(recorded, prompt=prompt).start().run([(5, accepted) for accepted in cycles])
    recorded.finish("r")
    traces = recorded.take()
    new = [token for trace in traces for token in trace.token_ids[trace.first_new :].tolist()]
    if traces:
        assert new == engine.tokens[traces[0].start : traces[-1].start + traces[-1].width + 1]
    assert all(trace.prompt_length == prompt for trace in traces)


def test_traces_name_the_tenant_by_its_key() -> None:
    recorded = recorder()
    for name in ("a", "b"):
        recorded.prompt(name, [1], torch.zeros(0, FEATURES), request_past(0), torch.ones(1), name)
        fields = {"tokens": [1] * 4, "top_ids": np.zeros((4, TOP_K)), "top_logprobs": np.zeros((4, TOP_K))}
        cycle = Cycle(torch.zeros(4, FEATURES), drafted=3, accepted=3, missed=np.zeros(4, bool), **fields)
        recorded.emitted(name, [cycle])
        recorded.finish(name)
    assert [trace.tenant for trace in recorded.take()] == [tenant_key("a"), tenant_key("b")]


def test_unknown_and_opted_out_requests_are_ignored() -> None:
    """The engine never opens a request that opted out; what it reports of it leaves no trace."""
    recorded = recorder()
    engine = FakeEngine(recorded)
    engine.run([(5, 5)] * 40)
    recorded.finish("r")
    assert recorded.take() == []
    assert recorded.outbox_bytes == 0


def test_requests_do_not_mix() -> None:
    recorded = recorder(trace_positions=16)
    engines = {
        name: FakeEngine(recorded, name, prompt=4 + seed, seed=seed) for seed, name in enumerate("abc")
    }
    for engine in engines.values():
        engine.start()
    for cycle in range(20):
        for engine in engines.values():
            engine.run([(5, cycle % 6)])
    for name, engine in engines.items():
        recorded.take()
        engine.run([(5, 5)] * 4)
        recorded.finish(name)
        traces = recorded.take()
        assert traces
        for trace in traces:
            engine.verify(trace)


def test_traces_own_no_more_than_their_bytes() -> None:
    recorded = recorder()
    FakeEngine(recorded).start().run([(5, 5)])
    recorded.finish("r")
    (trace,) = recorded.take()
    assert trace.features.base is None or trace.features.base.nbytes == trace.features.nbytes
    assert trace.top_ids.base is None


def test_short_rests_are_counted_not_recorded() -> None:
    recorded = recorder()
    FakeEngine(recorded, "a").start().run([(0, 0)] * (FEWEST_SCORED - 2))
    recorded.finish("a")
    assert recorded.take() == []
    FakeEngine(recorded, "b").start().run([(0, 0)] * (FEWEST_SCORED - 1))
    recorded.finish("b")
    assert len(recorded.take()) == 1
    assert (recorded.counts.short, recorded.counts.recorded) == (1, 1)


def test_outbox_is_bounded_and_drops_the_oldest() -> None:
    recorded = recorder(trace_positions=16, trace_buffer_mb=0.05)
    FakeEngine(recorded, prompt=2).start().run([(5, 5)] * 400)
    kept = recorded.outbox_bytes
    traces = recorded.take()
    assert kept == sum(trace.nbytes for trace in traces) <= 0.05 * 2**20
    assert len(traces) > 5
    assert recorded.counts.dropped == recorded.counts.recorded - len(traces) > 100
    assert [t.start for t in traces] == [traces[0].start + 12 * i for i in range(len(traces))]
    assert scored_tokens(traces)[-1] > 2390
    assert (recorded.take(), recorded.outbox_bytes) == ([], 0)


def test_windows_with_nan_are_dropped_and_counted() -> None:
    recorded = recorder(trace_positions=16)
    engine = FakeEngine(recorded).start()
    engine.recorder.emitted(
        "r",
        [
            Cycle(
                features=torch.full((1, FEATURES), torch.inf),
                tokens=[1],
                top_ids=np.arange(TOP_K)[None],
                top_logprobs=np.full((1, TOP_K), -2.0),
                drafted=0,
                accepted=0,
                missed=np.array([False]),
            )
        ],
    )
    engine.tokens.append(1)
    engine.run([(5, 5)] * 8)
    traces = recorded.take()
    assert recorded.counts.nonfinite == 1
    assert len(traces) >= 2
    for trace in traces:
        engine.verify(trace)


def test_log_probabilities_are_brought_into_float16() -> None:
    recorded = recorder()
    FakeEngine(recorded).start().run([(5, 4)])
    recorded.emitted(
        "r",
        [
            Cycle(
                features=torch.zeros(1, FEATURES),
                tokens=[1],
                top_ids=np.arange(TOP_K)[None],
                top_logprobs=np.array([[1e-7, -5.0, -1e6, -np.inf]]),
                drafted=0,
                accepted=0,
                missed=np.array([False]),
            )
        ],
    )
    recorded.finish("r")
    (trace,) = recorded.take()
    check(trace, LIMITS)
    assert trace.top_logprobs[-1, 0] == 0
    assert np.isfinite(trace.top_logprobs).all()


def test_windows_carry_the_versions_they_were_opened_under() -> None:
    recorded = recorder(trace_positions=16)
    engine = FakeEngine(recorded, prompt=2, stamp=Stamp(2, 30)).start()
    engine.stamp = Stamp(3, 31)
    engine.run([(5, 5)] * 6)
    first, second, *_ = recorded.take()
    assert (first.adapter_version, first.vocabulary_epoch) == (2, 30)
    assert (second.adapter_version, second.vocabulary_epoch) == (3, 31)
    assert first.fingerprints == FINGERPRINTS


@pytest.mark.parametrize(
    ("drafted", "accepted", "tokens", "rows"),
    [(2, 3, 1, 1), (5, 1, 3, 3), (5, 3, 3, 2)],
)
def test_counts_that_disagree_are_an_error(drafted: int, accepted: int, tokens: int, rows: int) -> None:
    recorded = recorder()
    FakeEngine(recorded).start()
    with pytest.raises(ValueError, match="request r"):
        recorded.emitted(
            "r",
            [
                Cycle(
                    features=torch.zeros(rows, FEATURES),
                    tokens=[1] * tokens,
                    top_ids=np.zeros((rows, TOP_K), dtype=np.int64),
                    top_logprobs=np.zeros((rows, TOP_K)),
                    drafted=drafted,
                    accepted=accepted,
                    missed=np.zeros(rows, dtype=bool),
                )
            ],
        )


def test_default_window_fits_the_trainers_limits() -> None:
    recorded = recorder()
    engine = FakeEngine(recorded, prompt=100).start().run([(5, 5)] * 10)
    (trace,) = recorded.take()
    engine.verify(trace)
    assert trace.width == POSITIONS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_records_features_of_a_cuda_engine() -> None:
    recorded = recorder(trace_positions=16)
    engine = FakeEngine(recorded, device="cuda").start().run([(5, 5)] * 6)
    recorded.finish("r")
    traces = recorded.take()
    assert len(traces) >= 2
    for trace in traces:
        engine.verify(trace)
