"""The trainer: it learns, exports what it learned, and survives what it is fed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from evospec.align.batch import collate
from evospec.align.forward import draft_states
from evospec.align.lora import Lora, LoraShape, merge_adapter
from evospec.align.loss import alignment_loss, candidate_ids
from evospec.align.trace import Trace
from evospec.align.trace_codec import encode
from evospec.align.trainer import AlignmentTrainer
from evospec.errors import EvoSpecError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot
from evospec.models.deltas import LORA_B
from tests.unit.align_tiny import (
    CORE,
    LENGTH,
    LIMITS,
    bfloat16_bits,
    learnable_trace,
    random_trace,
    tiny_config,
    tiny_drafter,
    tiny_tables,
    tiny_trainer,
)


def fed(trainer: AlignmentTrainer, traces: int = 20) -> AlignmentTrainer:
    for seed in range(traces):
        trainer.add(learnable_trace(seed))
    return trainer


def snapshot(trainer: AlignmentTrainer) -> dict[str, Tensor]:
    return trainer.candidate(1).tensors


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_learns_what_held_out_traces_confirm() -> None:
    trainer = fed(tiny_trainer(test_time_steps=3))
    before = trainer.gate()
    losses = [trainer.step().loss for _ in range(60)]
    trainer.candidate(1)
    report = trainer.gate()
    assert before.current == before.candidate
    assert before.current.greedy < 1.2
    assert losses[-1] < losses[0] / 3
    assert report.candidate.greedy > report.current.greedy + 1.0
    assert report.passes(0.5)
    assert not before.passes(0.0)


def test_accepting_a_candidate_raises_the_bar() -> None:
    trainer = fed(tiny_trainer())
    for _ in range(60):
        trainer.step()
    adapter = trainer.candidate(4)
    assert trainer.gate().passes(0.0)
    trainer.accept()
    assert trainer.current is adapter
    report = trainer.gate()
    assert report.current == report.candidate
    assert report.current.greedy > 1.2
    with pytest.raises(RuntimeError, match="accept without a candidate"):
        trainer.accept()


def test_a_candidate_from_before_a_step_cannot_be_accepted() -> None:
    trainer = fed(tiny_trainer())
    trainer.candidate(1)
    trainer.step()
    with pytest.raises(RuntimeError, match="since the last step"):
        trainer.accept()
    assert trainer.current.version == 0


def test_exported_adapter_reproduces_the_trainers_own_loss_and_logits() -> None:
    trainer = fed(tiny_trainer(batch_traces=64))
    for _ in range(5):
        trainer.step()
    drafter, tables = tiny_drafter(), tiny_tables()
    served = AdapterWeights.from_bytes(trainer.candidate(1).to_bytes(), 1, drafter)
    batch = collate(trainer.replay.sample(64), torch.device("cpu"))
    lora = Lora(tiny_drafter(), LoraShape(8, 16.0, targets="all"), seed=0)
    lora.load(served)
    trained = draft_states(drafter, lora.merged(), tables, batch, 3)
    base = draft_states(drafter, {}, tables, batch, 3)

    AdapterSlot(drafter).swap(served)

    states = draft_states(drafter, {}, tables, batch, 3)
    candidates = candidate_ids(CORE, batch)
    loss = alignment_loss(states, batch, tables.head[candidates], candidates)
    assert float(loss) == pytest.approx(trainer.step().loss, rel=1e-5)  # of all training traces
    for ours, theirs, unadapted in zip(trained, states, base, strict=True):
        torch.testing.assert_close(ours @ tables.head.T, theirs @ tables.head.T)
        assert not torch.allclose(ours, unadapted, atol=1e-2)
    for name, weight in merge_adapter(tiny_drafter(), served).items():
        assert torch.equal(weight, drafter.get_parameter(name))


def test_the_base_and_the_callers_drafter_never_change() -> None:
    drafter = tiny_drafter()
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    trainer = fed(AlignmentTrainer(tiny_config(), drafter, tiny_tables(), CORE, LIMITS, draft_length=3))
    for _ in range(3):
        trainer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in drafter.state_dict().items())
    trainer.restore(AdapterWeights(0, {}))
    report = trainer.gate()
    assert report.current == report.candidate


def test_a_fresh_trainer_is_the_base_and_equal_seeds_train_equally() -> None:
    left, right, other = (tiny_trainer(seed=seed) for seed in (1, 1, 2))
    fresh = snapshot(left)
    assert all(not tensor.any() for name, tensor in fresh.items() if name.endswith("lora_b"))
    assert same(fresh, snapshot(right))
    assert not same(fresh, snapshot(other))
    for trainer in (left, right):
        fed(trainer)
        trainer.step()
    assert not same(fresh, snapshot(left))
    assert same(snapshot(left), snapshot(right))


def test_restore_continues_from_a_published_version() -> None:
    first = fed(tiny_trainer())
    for _ in range(10):
        first.step()
    published = first.candidate(7)
    second = fed(tiny_trainer(seed=5))
    second.step()
    second.restore(published)
    assert second.current is published
    for name, tensor in second.candidate(8).tensors.items():
        torch.testing.assert_close(tensor, published.tensors[name])
    assert second.gate().gain == pytest.approx(0.0)
    assert second.step().applied


CUT: dict[str, object] = {"method": "full-parameter", "publish_rank": 2}


@pytest.mark.parametrize("method", [{"blend": 1.0}, {"blend": 0.5}, {"blend": 0.5, **CUT}], ids=str)
def test_with_its_training_state_another_trainer_goes_on_bit_for_bit(method: dict[str, object]) -> None:
    """All but the traces comes from the registry; with the same traces, the same step is made next."""
    first = fed(tiny_trainer(**method))
    for _ in range(6):
        first.step()
    blob, state = first.candidate(7).to_bytes(), first.training_state(7).to_bytes()
    ways = {}
    for way in ("resumed", "restored"):
        trainer = fed(tiny_trainer(**method))
        for _ in range(3):
            trainer.step()
        trainer.restore(AdapterWeights.from_bytes(blob, 7, trainer.drafter))
        if way == "resumed":
            trainer.resume(state)
        ways[way] = trainer
    for _ in range(3):
        expected = first.step()
        assert replace(ways["resumed"].step(), seconds=0) == replace(expected, seconds=0)
        assert same(snapshot(ways["resumed"]), snapshot(first))
        ways["restored"].step()
        assert not same(snapshot(ways["restored"]), snapshot(first))


def test_a_training_state_carries_counters_on() -> None:
    first = fed(tiny_trainer(), traces=30)
    for _ in range(3):
        first.step()
    first.replay.discard(first.replay.sample(2))
    adapter, state = first.candidate(7), first.training_state(7).to_bytes()
    second = fed(tiny_trainer(), traces=5)
    second.restore(adapter)
    second.resume(state)
    assert second.counts.steps == 3
    counts = second.replay.counts
    assert counts.training + counts.held_out == 35
    assert (counts.discarded, counts.evicted) == (2, 28)
    kept = second.replay.training_traces + second.replay.held_out_traces
    assert counts.training + counts.held_out - counts.evicted - counts.discarded == kept == 5
    assert abs(counts.held_out - 0.2 * 35) <= 2


def test_a_training_state_that_does_not_fit_changes_nothing() -> None:
    trainer, other, lower_rank = fed(tiny_trainer()), fed(tiny_trainer()), fed(tiny_trainer(rank=4))
    for each in (trainer, other, lower_rank):
        each.step()
    trainer.restore(trainer.candidate(3))
    fresh = trainer.training_state(3)
    wrong = {
        "version 4, not of 3": other.training_state(4).to_bytes(),
        "expected float32": lower_rank.training_state(3).to_bytes(),
        "not valid safetensors": b"junk",
    }
    for message, state in wrong.items():
        with pytest.raises(WireError, match=message):
            trainer.resume(state)
    assert trainer.training_state(3) == fresh
    assert fresh.moments == {}


def test_a_version_published_again_is_the_same_under_its_new_number() -> None:
    trainer = fed(tiny_trainer())
    trainer.step()
    trainer.candidate(3)
    trainer.accept()
    before = trainer.current.tensors
    trainer.renumber(9)
    assert trainer.current.version == 9
    assert trainer.current.tensors is before


def test_restoring_what_does_not_fit_changes_nothing() -> None:
    trainer = fed(tiny_trainer(targets="layer"))
    trainer.step()
    before = snapshot(trainer)
    other_rank = tiny_trainer(targets="layer", rank=4).candidate(3)
    with pytest.raises(WireError, match=r"rank 4, this aligner trains rank 8: set alignment\.rank to 4"):
        trainer.restore(other_rank)
    poisoned = AdapterWeights(
        3, {**before, "layers.0.mlp.up_proj.lora_a": before["layers.0.mlp.up_proj.lora_a"] * torch.nan}
    )
    with pytest.raises(WireError, match="NaN"):
        trainer.restore(poisoned)
    fusion = trainer.drafter.fc
    untrained = AdapterWeights(
        3,
        {"fc.lora_a": torch.zeros(8, fusion.in_features), "fc.lora_b": torch.zeros(fusion.out_features, 8)},
    )
    with pytest.raises(WireError, match="adapts fc, which this aligner does not train"):
        trainer.restore(untrained)
    assert same(before, snapshot(trainer))
    assert trainer.current.version == 0


def test_nan_features_never_reach_the_weights() -> None:
    trainer = fed(tiny_trainer())
    before = snapshot(trainer)
    bad = learnable_trace(99)
    features = bad.features.copy()
    features[:] = 0x7FC0
    for form in (replace(bad, features=features), encode(replace(bad, features=features))):
        with pytest.raises(WireError, match="NaN"):
            trainer.add(form)
    assert trainer.counts.refused_traces == 2
    assert trainer.replay.counts.training + trainer.replay.counts.held_out == 20
    assert same(before, snapshot(trainer))


def overflowing(seed: int) -> Trace:
    """Finite features that overflow float32 inside the drafter."""
    trace = learnable_trace(seed)
    return replace(trace, features=bfloat16_bits(np.full(trace.features.shape, 3e38)))


def test_a_step_that_is_not_finite_moves_nothing_and_drops_its_batch() -> None:
    trainer = fed(tiny_trainer(batch_traces=64))
    assert trainer.step().applied
    for seed in range(10):
        trainer.add(overflowing(seed))
    before, training = snapshot(trainer), trainer.replay.training_traces
    step = trainer.step()
    assert not step.applied
    assert not (math.isfinite(step.loss) and math.isfinite(step.grad_norm))
    assert (trainer.counts.steps, trainer.counts.skipped_steps) == (1, 1)
    assert trainer.replay.counts.discarded == step.traces == training
    assert same(before, snapshot(trainer))
    trainer.add(learnable_trace(50))
    for seed in range(51, 55):
        trainer.add(learnable_trace(seed))
    assert trainer.step().applied
    assert all(torch.isfinite(tensor).all() for tensor in snapshot(trainer).values())


def test_ready_needs_enough_traces_on_both_sides() -> None:
    trainer = tiny_trainer(min_traces=6, holdout=0.3)
    seen = []
    for seed in range(8):
        trainer.add(learnable_trace(seed))
        sides = min(trainer.replay.training_traces, trainer.replay.held_out_traces)
        seen.append(trainer.ready)
        assert trainer.ready == (sides > 0 and seed + 1 >= 6)
    assert seen[-1]
    assert not seen[4]


def test_steps_without_traces_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no training traces"):
        tiny_trainer().step()


def test_memory_is_bounded_under_a_flood() -> None:
    trainer = tiny_trainer(replay_mb=0.5)
    for seed in range(300):
        trainer.add(random_trace(seed, width=48))
        assert trainer.replay.nbytes <= 0.5 * 2**20
    assert trainer.replay.counts.evicted > 200
    assert trainer.step().traces == 8


def test_a_trace_object_is_copied() -> None:
    """A view of something larger must not keep it alive behind the byte bound."""
    trainer = tiny_trainer(holdout=0.01)
    trace = learnable_trace(0)
    padded = np.zeros((10_000, trace.features.shape[1]), dtype=np.uint16)
    padded[: trace.width] = trace.features
    trainer.add(replace(trace, features=padded[: trace.width]))
    (kept,) = trainer.replay.sample(1) or trainer.replay.sample_held_out(1)
    assert not np.shares_memory(kept.features, padded)
    assert np.array_equal(kept.features, trace.features)


def test_weight_decay_pulls_towards_the_base() -> None:
    """The same batches with a strong pull end nearer to the base."""
    norms = []
    for weight_decay in (0.0, 20.0):
        trainer = fed(tiny_trainer(weight_decay=weight_decay))
        for _ in range(20):
            trainer.step()
        merged = merge_adapter(tiny_drafter(), trainer.candidate(1))
        base = tiny_drafter()
        norms.append(sum(float((merged[n] - base.get_parameter(n)).norm()) for n in merged))
    assert norms[1] < norms[0] / 2


def test_versions_carry_a_share_of_what_was_learned() -> None:
    whole, half = (fed(tiny_trainer(blend=blend)) for blend in (1.0, 0.5))
    for trainer in (whole, half):
        for _ in range(20):
            trainer.step()
    drafter = tiny_drafter()
    all_of_it, part = (merge_adapter(drafter, trainer.candidate(1)) for trainer in (whole, half))
    for name, weight in part.items():
        base = drafter.get_parameter(name)
        torch.testing.assert_close(weight - base, (all_of_it[name] - base) / 2, rtol=1e-3, atol=1e-6)
    # What is judged is what would be published, and training goes on from what was learned.
    assert half.gate().candidate != whole.gate().candidate
    again = fed(tiny_trainer(blend=0.5))
    again.restore(half.candidate(1))
    assert same(merge_adapter(drafter, again.candidate(1)), part)
    assert again.gate().candidate.expected == pytest.approx(half.gate().candidate.expected)


def test_what_is_judged_of_whole_weights_is_the_cut_that_versions_carry() -> None:
    whole = fed(tiny_trainer(**{**CUT, "publish_rank": 0}))
    cut = fed(tiny_trainer(**CUT))
    assert [cut.step().loss for _ in range(40)] == [whole.step().loss for _ in range(40)]
    published, report = cut.candidate(1), cut.gate()
    ranks = {tensor.shape[0] for name, tensor in published.tensors.items() if name.endswith("lora_a")}
    assert ranks == {2}
    assert 1.1 < report.candidate.expected < 0.98 * whole.gate().candidate.expected
    # It is what another one judges who has nothing but that version.
    other = fed(tiny_trainer(**CUT))
    other.restore(published)
    found = other.gate()
    assert found.current == report.candidate
    assert found.gain == pytest.approx(0.0, abs=1e-4)
    # And training goes on from all that was learned, not from the cut.
    cut.accept()
    later = cut.gate()
    assert later.current == later.candidate
    whole.gate()  # which draws from the same traces
    continued = cut.step().loss
    assert continued == whole.step().loss
    assert other.step().loss > 1.1 * continued


def test_after_a_rollback_whole_weights_are_what_the_version_carries() -> None:
    trainer = fed(tiny_trainer(**CUT))
    for _ in range(5):
        trainer.step()
    first = trainer.candidate(1)
    for _ in range(20):
        trainer.step()
    before = merge_adapter(tiny_drafter(), first)
    assert not same(merge_adapter(tiny_drafter(), trainer.candidate(2)), before)
    trainer.restore(first)
    for name, weight in merge_adapter(tiny_drafter(), trainer.candidate(3)).items():
        torch.testing.assert_close(weight, before[name], rtol=1e-4, atol=1e-6)
    trainer.restore(AdapterWeights(0, {}))
    assert not any(delta.any() for delta in trainer.candidate(4).general.deltas().values())


def test_first_steps_are_small() -> None:
    """Adam's first step moves B, which is zero, by the learning rate; warming up, by its share."""
    largest = []
    for warmup_steps in (1, 10):
        trainer = fed(tiny_trainer(warmup_steps=warmup_steps, alpha=8.0, weight_decay=0.0))
        trainer.step()
        deltas = trainer.candidate(1).tensors
        largest.append(max(float(one.abs().max()) for name, one in deltas.items() if name.endswith(LORA_B)))
    assert largest == pytest.approx([1e-2, 1e-3], rel=0.01)


def test_a_drafter_shorter_than_the_traces_is_refused() -> None:
    with pytest.raises(EvoSpecError, match=r"set alignment\.trace_positions to at most 496"):
        AlignmentTrainer(
            tiny_config(),
            tiny_drafter(),
            tiny_tables(),
            CORE,
            replace(LIMITS, max_positions=LENGTH - 8),
            draft_length=16,
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trains_on_cuda_as_on_the_cpu() -> None:
    tables = tiny_tables()
    on_cuda = AlignmentTrainer(
        tiny_config(),
        tiny_drafter().cuda(),
        replace(tables, embedding=tables.embedding.cuda(), head=tables.head.cuda()),
        CORE,
        LIMITS,
        draft_length=3,
    )
    on_cpu = tiny_trainer()
    losses = [[fed(trainer).step().loss, trainer.step().loss] for trainer in (on_cpu, on_cuda)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    adapter = on_cuda.candidate(1)
    assert all(tensor.device.type == "cpu" for tensor in adapter.tensors.values())
    assert on_cuda.gate().positions == on_cpu.gate().positions > 0
    on_cuda.accept()
    on_cuda.restore(adapter)
    assert on_cuda.gate().gain == pytest.approx(0.0)
