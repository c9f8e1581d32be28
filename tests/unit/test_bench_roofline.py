"""Bytes that a cycle must move."""

from __future__ import annotations

import pytest
import torch

from evospec.bench.roofline import Roofline, Traffic, Workload, copy_bandwidth
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.bench_kit import batch_of, turn_of

TRAFFIC = Traffic(
    target_weights=1000,
    target_key=4,
    sliding_key=2,
    window=10,
    draft_fuse=50,
    draft_layer=30,
    draft_key=3,
    head_row=5,
)


def test_a_plain_cycle_reads_the_target_once_and_its_keys() -> None:
    work = Workload(drafting=0, steps=0, active_rows=0, contexts=100, running=1)
    assert TRAFFIC.cycle_bytes(work) == 1000 + 4 * 100 + 2 * 10  # sliding layers see 10 positions


def test_a_drafting_cycle_adds_fusion_and_steps() -> None:
    work = Workload(drafting=0.5, steps=3, active_rows=7, contexts=8, running=2)
    assert TRAFFIC.cycle_bytes(work) == 1000 + (4 + 2) * 8 + 0.5 * 50 + 3 * (30 + 3 * 8 + 5 * 7)


def test_weights_of_a_tied_model_count_once() -> None:
    target = tiny_target()
    drafter = tiny_drafter(target)
    traffic = Traffic.of(target, drafter)
    assert traffic.target_weights == sum(weight.nbytes for weight in target.model.parameters())
    # 4 layers with 2 key heads of 8 numbers, keys and values, float32; no layer slides.
    assert traffic.target_key == 4 * 2 * 8 * 2 * 4
    assert traffic.sliding_key == 0
    assert traffic.draft_key == 2 * 8 * 2 * 4
    assert traffic.head_row == target.hidden_size * 4
    own = sum(weight.nbytes for weight in drafter.parameters())
    assert traffic.draft_fuse + traffic.draft_layer == own
    assert Traffic.of(target, None).draft_layer == 0


def test_a_mean_cycle_follows_the_plans_that_were_used() -> None:
    turns = [turn_of("full", batch_of(0, "law"), [1, 2, 3], 1.0)]
    turns[0].counters.cycles_per_plan = {"chain-5": 1, "plain": 1}
    depths = {"chain-5": 5, "plain": 0, "tree-4x4-12": 4}
    work = Workload.of(turns, depths)
    assert work == Workload(drafting=0.5, steps=2.5, active_rows=1000, contexts=100, running=1)
    assert Roofline(TRAFFIC, depths, bandwidth=100.0).cycle_seconds(turns) == pytest.approx(
        TRAFFIC.cycle_bytes(work) / 100
    )
    assert Workload.of([], depths) is None


def test_copying_takes_time() -> None:
    assert copy_bandwidth(torch.device("cpu")) > 0
