"""Where a cycle's time goes."""

from __future__ import annotations

import pytest
import torch

from evospec.bench.profile import HostStopwatch, profile
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
    breakdown = profile(engine, pump, [batch_of(0, "law", size=2)], torch.device("cpu"))
    assert breakdown is not None
    # Steps that process a prompt are left out, here the first two.
    assert breakdown.cycles == engine.stats.cycles - 2
    assert breakdown.target_layers_ms > 0
    assert breakdown.draft_layer_ms > 0
    assert breakdown.vocabulary_ms == 0
    assert profile(engine, pump, [], torch.device("cpu")) is None


def chain_of_two(config: EngineConfig) -> EngineConfig:
    return config.model_copy(update={"drafting": "chain", "draft_length": 2})
