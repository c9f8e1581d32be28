from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import pytest

from actors.engine_loop import EngineLoop, Outlets
from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest
from actors.text_generation import generate_text
from evospec.engine.request import Request, SamplingParams, StepOutput
from evospec.engine.token_scores import TokenScore
from evospec.engine.token_text import PieceTokenizer, TokenTexts
from tests.tiny import tiny_tokenizer
from tests.unit.actors.fakes import FakeEngine, wait_until

Item = GenerationChunk | GenerationFailure


class ScriptedEngine(FakeEngine):
    """Emits the prompt itself, `per_step` tokens at a time."""

    per_step = 3

    def admit(self, request: Request) -> None:
        super().admit(request)
        self.left[request.id] = list(request.prompt_ids)

    def _advance(self, request_id: str) -> StepOutput:
        tokens = self.left.get(request_id, [])
        if request_id in self.cancelled:
            del self.left[request_id]
            return StepOutput(request_id, (), finish_reason="cancelled")
        now, rest = tokens[: self.per_step], tokens[self.per_step :]
        self.left[request_id] = rest
        if not rest:
            del self.left[request_id]
        drafted = len(now) - 1
        return StepOutput(request_id, tuple(now), drafted, drafted, None if rest else "length")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


class EndlessEngine(ScriptedEngine):
    """Repeats the prompt until cancelled, slowly enough for a busy event loop to keep up."""

    def _advance(self, request_id: str) -> StepOutput:
        time.sleep(0.001)
        if request_id in self.cancelled:
            return super()._advance(request_id)
        tokens = self.left[request_id]
        now, rest = tokens[: self.per_step], tokens[self.per_step :]
        self.left[request_id] = rest + now
        return StepOutput(request_id, tuple(now))


@pytest.fixture
def loop(engine: ScriptedEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    loop.start(Outlets())
    yield loop
    loop.stop()


@pytest.fixture(scope="module")
def tokenizer() -> PieceTokenizer:
    return cast(PieceTokenizer, tiny_tokenizer())


def ids(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer()(text).input_ids)


def collect(
    loop: EngineLoop,
    tokenizer: PieceTokenizer,
    text: str,
    stop: tuple[str, ...] = (),
    chunk_s: float = 0.0,
) -> list[Item]:
    async def run() -> list[Item]:
        request = GenerationRequest("r", ids(text), SamplingParams(), stop, chunk_s=chunk_s)
        return [item async for item in generate_text(loop, tokenizer, TokenTexts(tokenizer), request)]

    return asyncio.run(run())


def joined(items: list[Item]) -> str:
    return "".join(item.text for item in items if isinstance(item, GenerationChunk))


def test_one_chunk_per_cycle_with_text_tokens_and_counters(
    loop: EngineLoop, tokenizer: PieceTokenizer
) -> None:
    items = collect(loop, tokenizer, "abcdefgh")
    assert [len(item.token_ids) for item in items if isinstance(item, GenerationChunk)] == [3, 3, 2]
    assert joined(items) == "abcdefgh"
    last = items[-1]
    assert isinstance(last, GenerationChunk)
    assert (last.drafted, last.accepted, last.finish_reason) == (1, 1, "length")


class HeldEngine(ScriptedEngine):
    """Makes one step, and the others once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()
        self._steps = 0

    def _advance(self, request_id: str) -> StepOutput:
        if self._steps:
            assert self.may_go_on.wait(10.0)
        self._steps += 1
        return super()._advance(request_id)


def test_cycles_go_together_when_chunks_are_few(tokenizer: PieceTokenizer) -> None:
    """The first chunk is one cycle, as soon as it is there; the end waits for no time to pass."""
    engine, text = HeldEngine(), "abcdefgh" * 40
    loop = EngineLoop(engine)
    request = GenerationRequest("r", ids(text), SamplingParams(), chunk_s=math.inf)

    async def run() -> list[Item]:
        loop.start(Outlets())
        items = []
        async for item in generate_text(loop, tokenizer, TokenTexts(tokenizer), request):
            items.append(item)
            engine.may_go_on.set()
        return items

    chunks = [item for item in asyncio.run(run()) if isinstance(item, GenerationChunk)]
    loop.stop()
    assert joined([*chunks]) == text
    assert len(chunks) == 2
    assert sum(chunk.cycles for chunk in chunks) == math.ceil(len(text) / 3)
    assert sum(chunk.drafted for chunk in chunks) == sum(
        len(chunk.token_ids) - chunk.cycles for chunk in chunks
    )
    assert [chunk.finish_reason for chunk in chunks] == [None, "length"]


def test_a_pause_is_a_time_not_a_number_of_cycles(tokenizer: PieceTokenizer) -> None:
    """Chunks come no sooner than asked for, and bring what many cycles of an endless answer yielded."""
    loop = EngineLoop(EndlessEngine())
    loop.start(Outlets())
    request = GenerationRequest("r", ids("abc"), SamplingParams(), chunk_s=0.05)

    async def run() -> list[int]:
        clock = asyncio.get_running_loop().time
        began, cycles = clock(), []
        async with aclosing(generate_text(loop, tokenizer, TokenTexts(tokenizer), request)) as stream:
            async for chunk in stream:
                assert isinstance(chunk, GenerationChunk)
                assert clock() >= began + 0.05 * len(cycles) - 0.001
                cycles.append(chunk.cycles)
                if len(cycles) == 4:
                    return cycles
        raise AssertionError("it ended")

    cycles = asyncio.run(run())
    loop.stop()
    assert sum(cycles) > len(cycles)


def test_a_crash_in_a_pause_is_told_behind_what_came_before(tokenizer: PieceTokenizer) -> None:
    engine = EndlessEngine()
    loop = EngineLoop(engine)
    loop.start(Outlets())

    async def run() -> list[Item]:
        request = GenerationRequest("r", ids("abc"), SamplingParams(), chunk_s=math.inf)
        items = []
        async for item in generate_text(loop, tokenizer, TokenTexts(tokenizer), request):
            items.append(item)
            engine.crash = ValueError("boom")
        return items

    first, *_, last = asyncio.run(run())
    loop.stop()
    assert isinstance(first, GenerationChunk)
    assert isinstance(last, GenerationFailure)


def test_characters_of_several_tokens_are_never_torn(loop: EngineLoop, tokenizer: PieceTokenizer) -> None:
    items = collect(loop, tokenizer, "aé漢🙂b")
    assert joined(items) == "aé漢🙂b"
    assert all("\ufffd" not in item.text for item in items if isinstance(item, GenerationChunk))


@pytest.mark.parametrize("stop", ["def", "f", "efg"])
def test_a_stop_string_ends_text_tokens_and_engine_request(tokenizer: PieceTokenizer, stop: str) -> None:
    engine, text = EndlessEngine(), "abcdefghijkl"
    loop = EngineLoop(engine)
    loop.start(Outlets())
    items = collect(loop, tokenizer, text, (stop,))
    last = items[-1]
    assert isinstance(last, GenerationChunk)
    assert joined(items) == text[: text.index(stop)]
    assert last.finish_reason == "stop"
    # Tokens behind the stop string do not count, those that complete it do.
    tokens = sum(len(item.token_ids) for item in items if isinstance(item, GenerationChunk))
    assert tokens == text.index(stop) + len(stop)
    wait_until(lambda: not engine.has_work)
    loop.stop()
    assert engine.cancelled == {"r"}


def test_held_back_text_is_released_at_the_end(loop: EngineLoop, tokenizer: PieceTokenizer) -> None:
    assert joined(collect(loop, tokenizer, "abcde", ("efg",))) == "abcde"


class ScoringEngine(ScriptedEngine):
    """Says of each token how likely it was, the more so the larger its id; even ids were active."""

    def _advance(self, request_id: str) -> StepOutput:
        output = super()._advance(request_id)
        scores = tuple(TokenScore(token, -1.0 / token, ((token, -1.0 / token),)) for token in output.tokens)
        return replace(output, scores=scores, covered=tuple(token % 2 == 0 for token in output.tokens))


@pytest.mark.parametrize("chunk_s", [0.0, math.inf])
def test_what_is_known_of_tokens_comes_with_them_up_to_the_stop_string(
    tokenizer: PieceTokenizer, chunk_s: float
) -> None:
    engine = ScoringEngine()
    loop = EngineLoop(engine)
    loop.start(Outlets())
    items = collect(loop, tokenizer, "aé, d", (",",), chunk_s)
    loop.stop()
    chunks = [item for item in items if isinstance(item, GenerationChunk)]
    assert [len(chunk.logprobs) for chunk in chunks] == [len(chunk.token_ids) for chunk in chunks]
    assert all(chunk.covered == tuple(token % 2 == 0 for token in chunk.token_ids) for chunk in chunks)
    shown = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert [logprob.token.raw for logprob in shown] == [b"a", b"\xc3", b"\xa9", b","]
    assert [logprob.token.text for logprob in shown] == ["a", "bytes:\\xc3", "bytes:\\xa9", ","]
    assert shown[0].top == ((shown[0].token, shown[0].logprob),)
    assert shown[0].logprob == -1.0 / ids("a")[0]


def test_a_refused_request_ends_in_one_failure(loop: EngineLoop, tokenizer: PieceTokenizer) -> None:
    (failure,) = collect(loop, tokenizer, "")
    assert failure == GenerationFailure("invalid", "the prompt is empty", "prompt")


def test_a_crash_ends_in_one_failure(
    engine: ScriptedEngine, loop: EngineLoop, tokenizer: PieceTokenizer
) -> None:
    engine.crash = ValueError("boom")
    (failure,) = collect(loop, tokenizer, "abc")
    assert isinstance(failure, GenerationFailure)
    assert failure.kind == "failed"
    assert "boom" in failure.message


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_consumer_that_leaves_cancels_the_request(tokenizer: PieceTokenizer, how: str) -> None:
    engine = EndlessEngine()
    loop = EngineLoop(engine)
    loop.start(Outlets())
    request = GenerationRequest("r", ids("a"), SamplingParams())

    async def run() -> None:
        stream = generate_text(loop, tokenizer, TokenTexts(tokenizer), request)
        await anext(stream)
        if how == "close":
            await stream.aclose()
            return
        task = asyncio.ensure_future(_drain(stream))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
        wait_until(lambda: not engine.has_work)
    finally:
        loop.stop()
    assert engine.cancelled == {"r"}


async def _drain(stream: AsyncIterator[Item]) -> None:
    async for _ in stream:
        pass
