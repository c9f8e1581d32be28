"""Where a cycle's time goes."""

from __future__ import annotations

import pytest
import torch

from evospec.bench.measure import Batch
from evospec.bench.profile import HostStopwatch, TimedCycle, breakdown_of, profile
from evospec.config import EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.retrieval import RetrievalPump
from evospec.stopwatch import CyclePart
from evospec.vocab.memory_index import MemoryIndex
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.bench_kit import batch_of

SETTINGS = EngineConfig(max_batch=2, max_length=64, tree_depth=3, tree_beam=2, tree_nodes=6)


class Parts:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.marks: list[CyclePart] = []

    def mark(self, part: CyclePart) -> None:
        self.marks.append(part)


def new_engine(config: EngineConfig, *, drafts: bool = True) -> Engine:
    target = tiny_target()
    drafter = tiny_drafter(target) if drafts else None
    if drafter is not None:
        target.tap(drafter.config.tap_layers)
    return Engine(target, drafter, config, Fingerprints(target="", drafter="", tokenizer=""))


def cycle_of(engine: Engine) -> list[CyclePart]:
    """Marks of a cycle that follows another."""
    parts = Parts()
    for request in batch_of(0, "law").requests:
        engine.admit(request)
    engine.step()
    engine.watch(parts)
    engine.step()
    return parts.marks


@pytest.mark.parametrize(("mode", "steps"), [("chain", 4), ("tree", 3)])
def test_a_cycle_names_its_parts(mode: str, steps: int) -> None:
    config = EngineConfig.model_validate(SETTINGS.model_dump() | {"drafting": mode, "draft_length": 4})
    marks = cycle_of(new_engine(config))
    draft = ["draft_layer", *["draft_layer", "draft_head"] * steps, "host"]
    assert marks == [*draft, "target_layers", "target_head", "host"]


def test_plain_decoding_has_no_draft() -> None:
    assert cycle_of(new_engine(SETTINGS, drafts=False)) == ["host", "target_layers", "target_head", "host"]


def test_parts_are_all_of_the_time() -> None:
    stopwatch = HostStopwatch()
    stopwatch.start()
    stopwatch.mark("target_layers")
    torch.ones(200, 200) @ torch.ones(200, 200)
    stopwatch.mark("target_head")
    stopwatch.mark("host")
    seconds = stopwatch.stop()
    assert seconds["target_layers"] > 0
    assert all(value >= 0 for value in seconds.values())
    assert seconds["draft_layer"] == seconds["draft_head"] == seconds["vocabulary"] == 0
    again = HostStopwatch()
    again.start()
    assert again.stop().keys() == seconds.keys()


def test_a_profile_counts_cycles_and_leaves_the_engine_as_it_was() -> None:
    engine = new_engine(chain_of_two(SETTINGS))
    pump = RetrievalPump(engine, MemoryIndex(8), 4)
    law, warm_up = batch_of(0, "law", size=2), batch_of(1, "warm-up")
    breakdown = profile(engine, pump, {"law": law}, warm_up, torch.device("cpu"))["law"]
    # Each of two passes decodes the warm-up's request, then two: steps that process a prompt do not count.
    alone = engine_cycles(warm_up) + engine_cycles(law)
    assert engine.stats.cycles == 2 * alone
    assert breakdown.cycles == {"chain-2": engine_cycles(law) - 2}
    assert breakdown.cycle_ms > 0
    assert breakdown.target_layers_ms > 0
    assert breakdown.draft_layer_ms > 0
    assert breakdown.vocabulary_ms == 0
    assert breakdown.marks_ms == breakdown.watched_ms - breakdown.cycle_ms
    assert profile(engine, pump, {}, warm_up, torch.device("cpu")) == {}


def device_parts(layers: float) -> dict[CyclePart, float]:
    """As a GPU tells them: without the host's."""
    return {"target_layers": layers, "target_head": 0.001}


def test_the_host_is_what_the_device_leaves_of_a_cycle_without_marks() -> None:
    untimed = [TimedCycle("plain", 0.006, None), TimedCycle("plain", 0.008, None)]
    watched = [TimedCycle("plain", 0.020, device_parts(0.005))]
    breakdown = breakdown_of(untimed, watched)
    assert breakdown is not None
    assert breakdown.cycle_ms == pytest.approx(7.0)
    assert breakdown.target_layers_ms == pytest.approx(5.0)
    assert breakdown.host_ms == pytest.approx(1.0)
    assert breakdown.marks_ms == pytest.approx(13.0)


def test_passes_that_drafted_differently_are_compared_plan_by_plan() -> None:
    untimed = [*[TimedCycle("chain-5", 0.010, None)] * 3, TimedCycle("plain", 0.004, None)]
    watched = [
        TimedCycle("chain-5", 0.012, device_parts(0.008)),
        *[TimedCycle("plain", 0.005, device_parts(0.002))] * 9,
    ]
    breakdown = breakdown_of(untimed, watched)
    assert breakdown is not None
    assert breakdown.cycles == {"chain-5": 3, "plain": 1}
    assert breakdown.cycle_ms == pytest.approx(8.5)
    assert breakdown.target_layers_ms == pytest.approx(6.5)
    assert breakdown_of(untimed, watched[1:]) is None  # most of what was decoded was never looked into


def engine_cycles(batch: Batch) -> int:
    """Cycles that a batch takes."""
    engine = new_engine(chain_of_two(SETTINGS))
    for request in batch.requests:
        engine.admit(request)
    while engine.has_work:
        engine.step()
    return engine.stats.cycles


def chain_of_two(config: EngineConfig) -> EngineConfig:
    return config.model_copy(update={"drafting": "chain", "draft_length": 2})
