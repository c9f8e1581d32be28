"""What arms cost besides their cycles: changes made while requests run, graphs and memory."""

from __future__ import annotations

import numpy as np
import pytest

from evospec.bench.cost_tables import cost_sections
from evospec.bench.costs import ArmCosts, Change, DeviceMemory, Upkeep
from evospec.bench.settings import batch_sizes
from evospec.bench.totals import totals_table
from evospec.bench.upkeep import UPDATE_ROWS, measure_upkeep, upkeep_batch
from evospec.config import EngineConfig, VocabularyConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.errors import EvoSpecError
from evospec.vocab.policy import build_policy
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.bench_kit import batch_of, run_of

VOCAB = 4000
CONFIG = EngineConfig(max_batch=2, max_length=96, drafting="chain", draft_length=2)


def new_engine(policy: str | None) -> Engine:
    target = tiny_target(vocab=VOCAB)
    drafter = tiny_drafter(target)
    target.tap(drafter.config.tap_layers)
    fingerprints = Fingerprints(target="", drafter="", tokenizer="")
    if policy is None:
        return Engine(target, None, CONFIG, fingerprints)
    vocabulary = VocabularyConfig(policy=policy, capacity=1024, core=64)
    built = build_policy(vocabulary, drafter.tables(target.tables), np.arange(VOCAB), [256], 2)
    return Engine(target, drafter, CONFIG, fingerprints, learners=Learners(vocabulary=built))


def test_changes_are_made_while_requests_run_and_undone() -> None:
    engine = new_engine("evospec")
    upkeep = measure_upkeep(engine, upkeep_batch(batch_of(0, "law", size=2), 90), VOCAB)
    assert upkeep is not None
    assert upkeep.update is not None
    assert upkeep.swap is not None
    assert upkeep.update.rows is not None
    assert UPDATE_ROWS / 2 < upkeep.update.rows <= UPDATE_ROWS
    assert upkeep.swap.rows is None
    assert upkeep.cycle_us > 0
    assert upkeep.captures == upkeep.update.captures == upkeep.swap.captures == 0
    assert engine.stats.adapter_swaps > 1
    assert engine.stats.adapter_version == 0
    assert not engine.has_work


def test_rows_that_never_change_and_plain_decoding_have_no_such_cost() -> None:
    static = measure_upkeep(new_engine("full"), upkeep_batch(batch_of(0, "law"), 90), VOCAB)
    assert static is not None
    assert static.update is None
    assert static.swap is not None
    assert measure_upkeep(new_engine(None), batch_of(0, "law"), VOCAB) is None


def test_costs_are_tabled_where_they_are_known() -> None:
    change = Change(repeats=16, rows=250.0, call_us=30.0, added_us=12.0, share=0.02, captures=0)
    memory = DeviceMemory(
        weights_mb=1000, cache_mb=50, models_mb=10, buffers_mb=20, graphs_mb=30, transient_mb=40
    )
    assert memory.overhead_mb == 100
    costs = ArmCosts(
        name="evospec",
        batch=1,
        captures_before=84,
        captures_timed=3,
        memory=memory,
        upkeep=Upkeep(cycle_us=600.0, captures=0, update=change, swap=None),
    )
    text = "\n".join(cost_sections([costs]))
    assert "| evospec | 84 | 3 |" in text
    assert "| evospec | active rows | 250 | 30 | 12 | 600 | 2.0% | 0 |" in text
    assert "| evospec | 1,000 | 50 | 100 | 10 | 20 | 30 | 40 |" in text
    bare = ArmCosts(name="plain", batch=1, captures_before=0, captures_timed=0, memory=None, upkeep=None)
    assert cost_sections([bare]) == []


def test_totals_are_per_batch_size_and_arm() -> None:
    runs = [
        run_of("plain", "law", tokens_per_s=100.0, slowest_request=1.0, slow_requests=0.0),
        run_of("plain", "code", tokens_per_s=200.0, slowest_request=1.0, slow_requests=0.0),
        run_of(
            "plain",
            "law",
            batch=8,
            tokens_per_s=800.0,
            captures=2,
            slowest_request=0.9,
            slow_requests=0.25,
        ),
    ]
    lines = totals_table(runs).splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [["| 1", "plain", "150"], ["| 8", "plain", "800"]]
    assert "| 0.90 | 25% |" in lines[1]
    assert lines[1].endswith("| 2 | 0.0% |")


def test_batch_sizes_are_read() -> None:
    assert batch_sizes("1, 8,32,8") == (1, 8, 32)
    for text in ("0", "", "8,", "x", "4096"):
        with pytest.raises(EvoSpecError, match="write sizes from 1 to 1024"):
            batch_sizes(text)
