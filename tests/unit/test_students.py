"""One adapter for each kind of traffic: each learns from its own, is judged by its own and stays its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from evospec.align.gate import Acceptance, GateReport
from evospec.align.trace import Trace, floats_of
from evospec.align.trainer import AlignmentTrainer
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.bank import Bank
from evospec.models.deltas import Deltas
from tests.unit.align_tiny import (
    HIDDEN,
    TOP_K,
    VOCAB,
    kind_trace,
    learnable_trace,
    random_trace,
    tiny_trainer,
)
from tests.unit.banks import random_bank

Weights = list[dict[str, Tensor]]


def feed(trainer: AlignmentTrainer, kinds: int = 2, each: int = 20) -> AlignmentTrainer:
    """In turns, so that each kind is there from the start."""
    for number in range(kinds * each):
        trainer.add(kind_trace(number % kinds, number))
    return trainer


def banked(adapters: int = 2, **settings: object) -> AlignmentTrainer:
    return tiny_trainer(**{"adapters": adapters, "min_traces": 8, "replay_mb": 16.0, **settings})


def bank_of(adapter: AdapterWeights) -> Bank:
    assert adapter.bank is not None
    return adapter.bank


def learned(trainer: AlignmentTrainer) -> Weights:
    """What each kind's adapter would be."""
    return [deltas.tensors for deltas in bank_of(trainer.candidate(99)).adapters]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def kind_at(trainer: AlignmentTrainer, direction: int) -> int:
    """The kind that requests of a direction are of, as a replica would tell."""
    context = torch.from_numpy(floats_of(kind_trace(direction, 77).context))[None]
    return int(bank_of(trainer.candidate(99)).routes.choose(context)) - 1


def test_kinds_get_a_student_once_there_is_enough_of_them_and_while_there_is_a_place() -> None:
    trainer = banked(adapters=2)
    assert (trainer.ready, trainer.due, trainer.trained_parameters) == (False, False, 0)
    with pytest.raises(RuntimeError, match="no training traces"):
        trainer.step()
    assert trainer.candidate(1).bank is None
    feed(trainer, kinds=1)
    one = trainer.trained_parameters
    assert one == tiny_trainer().trained_parameters
    for number in range(100, 107):
        trainer.add(kind_trace(1, number))
        assert trainer.trained_parameters == one
    for number in range(200, 230):
        trainer.add(kind_trace(1, number))
        trainer.add(kind_trace(2, number))
    assert trainer.trained_parameters == 2 * one
    assert [kind_at(trainer, direction) for direction in (0, 1, 3)] == [0, 1, -1]


def test_what_finds_no_place_joins_a_kind_and_pays_for_its_steps() -> None:
    trainer = feed(banked(adapters=2), kinds=2, each=30)
    one, replay = tiny_trainer().trained_parameters, trainer.replay
    while trainer.due:
        trainer.step()
    for number in range(100, 140):
        trainer.add(kind_trace(2, number))
    assert trainer.trained_parameters == 2 * one
    kind = kind_at(trainer, 2)
    assert kind in (0, 1)
    assert [kind_at(trainer, direction) for direction in (0, 1, 3)] == [0, 1, -1]
    assert bank_of(trainer.candidate(5)).routes.kinds.tolist() == sorted([0, 1, kind])
    training, held_out = replay.sides(kind)
    assert training + held_out > 60
    credit = trainer.training_state(5).credits
    assert credit[kind] == pytest.approx(40 * trainer._config.steps_per_trace, abs=1)
    assert credit[1 - kind] <= 0


def test_a_small_part_of_the_traffic_takes_nobodys_place() -> None:
    trainer = feed(banked(adapters=2), kinds=1, each=60)
    one = trainer.trained_parameters
    for number in range(100, 115):
        trainer.add(kind_trace(1, number))
    assert trainer.trained_parameters == one  # 15 of 75 are less than a quarter
    for number in range(200, 210):
        trainer.add(kind_trace(1, number))
    assert trainer.trained_parameters == 2 * one


def test_a_step_moves_one_kind_by_its_own_traces_alone() -> None:
    left, right = feed(banked()), feed(banked())
    for number in range(300, 306):
        right.add(kind_trace(1, number, random_trace))  # another kind's: it changes nothing for the first
    before = learned(left)
    assert same(before[0], before[1])
    moved: list[int] = []
    for _ in range(6):
        step = left.step()
        after = learned(left)
        assert step.kind is not None
        assert [same(a, b) for a, b in zip(before, after, strict=True)].count(False) == 1
        assert not same(before[step.kind], after[step.kind])
        moved.append(step.kind)
        before = after
    assert sorted(moved) == [0, 0, 0, 1, 1, 1]  # as many traces have come of both
    assert [right.step().kind for _ in range(3)] == [1, 1, 1]  # three more are paid for


def test_the_same_batches_teach_a_kind_what_they_would_teach_a_trainer_of_its_own() -> None:
    whole, alone = feed(banked(batch_traces=1000)), tiny_trainer(batch_traces=1000, replay_mb=16.0)
    steps = [whole.step() for _ in range(4)]
    kinds = whole.replay.clusters
    for direction in (0, 1):
        kind = kind_at(whole, direction)
        losses = [step.loss for step in steps if step.kind == kind]
        alone = tiny_trainer(batch_traces=1000, replay_mb=16.0)
        for trace in whole.replay.sample(1000, kind):
            assert kinds.kinds_of([trace]).tolist() == [kind]
            alone.replay._training.add(trace)
        assert [alone.step().loss for _ in losses] == pytest.approx(losses, rel=1e-4)


def test_what_is_of_no_kind_pays_for_nothing_and_teaches_nobody() -> None:
    trainer = feed(banked(adapters=1), kinds=1, each=100)
    while trainer.due:
        trainer.step()
    assert trainer.trained_parameters == tiny_trainer().trained_parameters
    for number in range(400, 412):
        trainer.add(kind_trace(2 + number % 4, number))  # too few of each to join
    assert not trainer.due
    trainer.add(kind_trace(0, 500))
    assert trainer.due


def unlearnable(seed: int) -> Trace:
    """A window whose target is as sure of each next token, but it may be any."""
    trace, rng = learnable_trace(seed), np.random.default_rng(seed)
    shuffled = np.stack([rng.choice(VOCAB, TOP_K, replace=False) for _ in range(trace.width)])
    return replace(trace, top_ids=shuffled.astype(np.int32))


def half_learnable() -> AlignmentTrainer:
    """A kind whose text can be learned, and one whose can't."""
    trainer = banked(min_gain=0.2)
    for number in range(40):
        trainer.add(kind_trace(number % 2, number, unlearnable if number % 2 else learnable_trace))
    return trainer


def test_versions_carry_what_passes_on_traces_of_its_own_kind() -> None:
    trainer = half_learnable()
    good, bad = kind_at(trainer, 0), kind_at(trainer, 1)
    for _ in range(120):
        trainer.step()
    report = trainer.gate()
    assert report.kinds.keys() == {good, bad}
    assert report.passes(0.2)
    assert report.passed(0.2) == [good]
    assert report.positions == sum(one.positions for one in report.kinds.values())
    assert report.current.expected < report.candidate.expected < report.kinds[good].candidate.expected
    first = trainer.candidate(1, report)
    assert first.tensors == {}
    assert bank_of(first).adapters[bad].tensors == {}
    what_passed = bank_of(first).adapters[good].tensors
    assert same(what_passed, learned(trainer)[good])

    trainer.candidate(1, report)
    trainer.accept()
    assert trainer.gate().kinds == {}  # nobody has learned anything since
    kinds = {trainer.step().kind for _ in range(4)}
    assert kinds == {good, bad}
    report = trainer.gate()
    assert report.kinds.keys() == {good, bad}
    assert report.passed(0.2) == []  # not by so much once more
    second = bank_of(trainer.candidate(2, report))
    assert same(second.adapters[good].tensors, what_passed)
    assert second.adapters[bad].tensors == {}
    assert not same(what_passed, learned(trainer)[good])


def test_without_held_out_traces_of_its_kind_nothing_passes() -> None:
    trainer = feed(banked())
    for _ in range(20):
        trainer.step()
    trainer.replay.discard(trainer.replay.sample_held_out(1000, 0))
    report = trainer.gate()
    assert report.kinds[0].positions == 0
    assert report.passed(-10.0) == [1]


def test_reports_sum_up_by_positions_and_count_what_does_not_pass_as_it_was() -> None:
    low, high = Acceptance(1.0, 1.5), Acceptance(2.0, 3.5)
    kinds = {0: GateReport(low, high, 10), 2: GateReport(high, low, 30)}
    report = GateReport.over(kinds, 0.0)
    assert report.passed(0.0) == [0]
    assert report.positions == 40
    assert report.current == Acceptance(greedy=1.75, expected=3.0)
    assert report.candidate == Acceptance(greedy=2.0, expected=3.5)
    assert not GateReport.over({2: kinds[2]}, 0.0).passes(0.0)
    assert not GateReport.over({}, 0.0).passes(-1.0)


@pytest.mark.parametrize("blend", [1.0, 0.5])
def test_with_its_training_state_another_trainer_goes_on_bit_for_bit(blend: float) -> None:
    """With kinds that no version carries yet as well: the state brings their weights."""
    first = feed(banked(adapters=3, blend=blend), kinds=3)
    for _ in range(12):
        first.step()
    passing = GateReport(Acceptance(1.0, 1.0), Acceptance(2.0, 2.0), 5)
    report = GateReport.over({0: passing, 2: passing}, 0.0)
    adapter = first.candidate(7, report)
    assert bank_of(adapter).adapters[1].tensors == {}
    blob, state = adapter.to_bytes(), first.training_state(7).to_bytes()
    first.accept()
    ways = {}
    for way in ("resumed", "restored"):
        trainer = feed(banked(adapters=3, blend=blend), kinds=3)
        for _ in range(5):
            trainer.step()
        trainer.restore(AdapterWeights.from_bytes(blob, 7, trainer.drafter))
        if way == "resumed":
            trainer.resume(state)
        ways[way] = trainer
    resumed, restored = ways["resumed"], ways["restored"]
    assert all(same(*each) for each in zip(learned(resumed), learned(first), strict=True))
    assert [same(*each) for each in zip(learned(restored), learned(first), strict=True)] == [
        True,
        False,
        True,
    ]
    for _ in range(6):
        expected = first.step()
        assert replace(resumed.step(), seconds=0) == replace(expected, seconds=0)
        assert all(same(*each) for each in zip(learned(resumed), learned(first), strict=True))
    assert resumed.gate() == first.gate()


CUT: dict[str, object] = {"method": "full-parameter", "publish_rank": 2}


def test_kinds_trained_whole_publish_a_cut_and_go_on_bit_for_bit_from_more_than_that() -> None:
    first, resumed, restored = (feed(banked(adapters=3, blend=0.5, **CUT), kinds=3) for _ in range(3))
    for _ in range(12):
        first.step()
    passing = GateReport(Acceptance(1.0, 1.0), Acceptance(2.0, 2.0), 5)
    adapter = first.candidate(7, GateReport.over({0: passing, 2: passing}, 0.0))
    blob, state = adapter.to_bytes(), first.training_state(7)
    assert state.cut == [0, 2]
    assert len(state.weights) == len(state.moments) == 3 * 8  # linear layers, and of all kinds
    first.accept()
    received = AdapterWeights.from_bytes(blob, 7, first.drafter)
    ranks = [{min(one.shape) for one in deltas.tensors.values()} for deltas in bank_of(received).adapters]
    assert ranks == [{2}, set(), {2}]
    for trainer in (resumed, restored):
        trainer.restore(received)
    resumed.resume(state.to_bytes())
    assert resumed.gate() == (report := first.gate())
    assert report.kinds.keys() == {1}  # the others have learned nothing that was not published
    for _ in range(6):
        expected = first.step()
        assert replace(resumed.step(), seconds=0) == replace(expected, seconds=0)
        assert all(same(*each) for each in zip(learned(resumed), learned(first), strict=True))
        restored.step()
    assert not same(learned(restored)[0], learned(first)[0])


def test_a_revoked_version_is_left_by_all_students() -> None:
    trainer = feed(banked())
    for _ in range(10):
        trainer.step()
    trainer.restore(AdapterWeights(0, {}))
    assert trainer.candidate(1).bank is None
    feed(trainer, each=8)  # kinds are numbered anew
    assert all(not one.any() for each in learned(trainer) for name, one in each.items() if "lora_b" in name)
    assert trainer.step().applied


@pytest.mark.parametrize("direction", ["to a bank", "from a bank"])
def test_another_way_to_share_out_adapters_is_refused_and_changes_nothing(direction: str) -> None:
    sole, many = tiny_trainer(), feed(banked(adapters=2))
    for number in range(20):
        sole.add(learnable_trace(number))
    sole.step()
    many.step()
    trainer, other, message = (
        (many, sole.candidate(3), "one adapter for all traffic, .* set alignment.adapters to 0")
        if direction == "to a bank"
        else (sole, many.candidate(3), "for 2 kinds of traffic, .* set alignment.adapters to 2")
    )
    before = trainer.candidate(9).contents
    with pytest.raises(WireError, match=message):
        trainer.restore(other)
    assert same(trainer.candidate(9).contents, before)
    assert trainer.current.version == 0


def test_versions_of_more_kinds_or_another_rank_are_refused_and_change_nothing() -> None:
    trainer = feed(banked(adapters=2))
    trainer.step()
    before = trainer.candidate(9).contents
    wide = AdapterWeights(3, {}, bank=random_bank(trainer.drafter, 3))
    with pytest.raises(WireError, match="for 3 kinds of traffic, this aligner trains 2"):
        trainer.restore(wide)
    routes = bank_of(trainer.candidate(3)).routes
    mine = Deltas(learned(trainer)[0])
    other = random_bank(trainer.drafter, 2).adapters[0]  # of rank 2
    with pytest.raises(WireError, match="rank 2, this aligner trains rank 8"):
        trainer.restore(AdapterWeights(3, {}, bank=Bank(routes, (mine, other))))
    assert same(trainer.candidate(9).contents, before)


def test_published_banks_are_as_large_as_their_adapters_and_no_larger() -> None:
    trainer = feed(banked(adapters=3), kinds=3)
    trainer.step()
    blob = trainer.candidate(5).to_bytes()
    adapter = sum(tensor.nbytes for tensor in learned(trainer)[0].values())
    tables = 4 * HIDDEN * (3 + 2) + 4
    assert 0 <= len(blob) - 3 * adapter - tables < 20_000  # names and shapes
    received = AdapterWeights.from_bytes(blob, 5, trainer.drafter)
    assert same(received.contents, trainer.candidate(5).contents)
    state = trainer.training_state(5).to_bytes()
    assert len(state) < 12 * trainer.trained_parameters + 20_000
