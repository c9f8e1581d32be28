"""The arithmetic of an overhead bench, and its engine's side."""

from __future__ import annotations

from pathlib import Path

import pytest

from evospec.bench.machine import describe_machine
from evospec.config import Config, EngineConfig, ModelConfig
from evospec.engine.build import load_engine
from evospec.engine.request import SamplingParams
from services.load.direct import DirectEngine
from services.load.overhead import _pair, row
from services.load.overhead_results import OverheadResults, render
from services.load.settings import LoadError
from services.load.timing import Timed
from tests.tiny import tiny_folders


def timed(start: float, first: float, end: float, tokens: int = 10) -> Timed:
    return Timed(start, first, end, tokens)


def test_sides_are_compared_round_by_round_and_medians_reported() -> None:
    rounds = [(1.0, 2.0), (1.0, 1.25), (2.0, 2.5)]  # the first one was disturbed
    pairs = [_pair([timed(0, 0.1, one)], [timed(5, 5.12, 5 + other)]) for one, other in rounds]
    found = row(4, pairs)
    assert found.overhead == pytest.approx(0.2)
    assert found.direct_tokens_per_s == pytest.approx(10)
    assert found.served_tokens_per_s == pytest.approx(5)
    assert found.ttft_added_ms == pytest.approx(20)
    results = OverheadResults(
        schema=1, machine=describe_machine(), git="x", settings={"target": "t"}, rows=(found,)
    )
    assert "| 4 | 10.0 | 5.0 | 20.0% |" in render(results)


def test_sides_that_generated_differently_are_not_compared() -> None:
    with pytest.raises(LoadError, match="10 tokens and the server 11"):
        _pair([timed(0, 1, 2)], [timed(0, 1, 2, tokens=11)])


def test_the_engine_is_kept_as_full_as_asked(tmp_path: Path) -> None:
    folders = tiny_folders(tmp_path)
    model = ModelConfig(
        target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32"
    )
    engine = load_engine(Config(model=model, engine=EngineConfig(max_batch=4, max_length=64)))
    direct = DirectEngine(engine, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    done = direct.run([(1, 2, 3)] * 5, streams=2)
    assert [one.tokens for one in done] == [8] * 5
    assert all(one.first is not None and one.started < one.first <= one.finished for one in done)
    assert sum(one.started < done[0].finished for one in done) == 2
    assert not engine.has_requests
