"""A training run and its folder: checkpoints, resuming, stopping, initial weights, and what it leaves."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evospec.errors import DrafterMismatchError, EvoSpecError, ModelNotFoundError
from evospec.models.drafter_store import load_drafter, save_drafter
from evospec.training.checkpoint import CheckpointStore
from evospec.training.provenance import Provenance
from evospec.training.stopping import StoppedError, StopSignal
from evospec.training.trainer import DrafterTrainer
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.training_runs import (
    PLAN,
    checkpoint_tensors,
    same_tensors,
    stop_after,
    tiny_corpus,
    train_tiny,
    weights_of,
)

EVERY_STEP = 1e-9  # minutes


def interrupted(corpus, out: Path, step: int, **settings) -> StoppedError:
    stop = StopSignal()
    with pytest.raises(StoppedError) as stopped:
        train_tiny(corpus, out, report=stop_after(step, stop), stop=stop, **settings)
    return stopped.value


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_bit_equal_to_one_that_was_never_stopped(tmp_path: Path, ema: float) -> None:
    corpus, plan = tiny_corpus(tmp_path / "corpus"), replace(PLAN, ema=ema)
    train_tiny(corpus, tmp_path / "whole", plan=plan)
    interrupted(corpus, tmp_path / "parts", 3, plan=plan)
    torch.manual_seed(99)  # another process has another state of the random numbers
    interrupted(corpus, tmp_path / "parts", 5, plan=plan, resume=True)
    train_tiny(corpus, tmp_path / "parts", plan=plan, resume=True)
    whole, parts = checkpoint_tensors(tmp_path / "whole"), checkpoint_tensors(tmp_path / "parts")
    assert same_tensors(whole, parts)
    assert same_tensors(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    assert ("average.fc.weight" in whole) == bool(ema)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == list(range(1, 9))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_a_run_covers_several_epochs_and_stops_inside_one(tmp_path: Path) -> None:
    corpus, plan = tiny_corpus(tmp_path / "corpus", documents=8), replace(PLAN, optimizer_steps=9)
    interrupted(corpus, tmp_path / "parts", 4, plan=plan)
    position = CheckpointStore(tmp_path / "parts").load().record.position
    assert position.epoch >= 1 or position.batch == 4
    train_tiny(corpus, tmp_path / "parts", plan=plan, resume=True)
    train_tiny(corpus, tmp_path / "whole", plan=plan)
    assert CheckpointStore(tmp_path / "whole").load().record.position.epoch >= 1
    assert same_tensors(checkpoint_tensors(tmp_path / "whole"), checkpoint_tensors(tmp_path / "parts"))


def test_the_folder_of_a_finished_run(tmp_path: Path) -> None:
    target = tiny_target()
    result = train_tiny(tiny_corpus(tmp_path / "corpus"), tmp_path / "out", target=target)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "README.md",
        "checkpoint",
        "config.json",
        "curve.png",
        "history.jsonl",
        "model.safetensors",
        "provenance.json",
        "vocabulary.safetensors",
    }
    assert [path.name for path in (tmp_path / "out" / "checkpoint").iterdir()] == ["state.safetensors"]
    loaded = load_drafter(tmp_path / "out", torch.float32, torch.device("cpu"))
    assert loaded.drafter.config.target_fingerprint == target.fingerprint.target
    assert len(loaded.core_ranks) > 100
    provenance = Provenance.model_validate_json((tmp_path / "out" / "provenance.json").read_bytes())
    assert provenance.result == result
    assert provenance.training == PLAN
    assert result.optimizer_steps == 8
    assert result.held_out == 6
    assert result.acceptance_length is not None
    assert result.acceptance_length == pytest.approx(1 + sum(result.acceptance_by_step), rel=0.3)
    assert [one.share for one in result.measurements] == [1 / 8, 1 / 4, 1 / 2, 1.0]
    half, end = result.measurements[2:]
    assert result.last_doubling == end.acceptance_length - half.acceptance_length
    assert result.peak_share is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{result.acceptance_length:.2f} tokens per cycle" in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "provenance.json").read_text()


def test_a_run_with_another_loss_and_a_wider_mlp(tmp_path: Path) -> None:
    """Says what it was made with, and is continued and gone on from in its own width."""
    corpus, target = tiny_corpus(tmp_path / "corpus"), tiny_target()
    plan = replace(PLAN, focus=3.0, step_decay=1.0, unreached=0.5)
    train_tiny(corpus, tmp_path / "plain", target=target)
    whole = tmp_path / "whole"
    train_tiny(corpus, whole, target=target, plan=plan, mlp_factor=2)
    assert not same_tensors(weights_of(whole), weights_of(tmp_path / "plain"))
    width = target.model.config.intermediate_size
    assert weights_of(whole)["layers.0.mlp.up_proj.weight"].shape[0] == 2 * width
    assert (
        load_drafter(whole, torch.float32, torch.device("cpu")).drafter.config.intermediate_size == 2 * width
    )
    assert "LK loss (eta 3) over the whole vocabulary" in (whole / "README.md").read_text()
    assert Provenance.model_validate_json((whole / "provenance.json").read_bytes()).training == plan

    interrupted(corpus, tmp_path / "parts", 4, plan=plan, mlp_factor=2)
    with pytest.raises(EvoSpecError, match=r"focus is 0\.0, was 3\.0"):
        train_tiny(corpus, tmp_path / "parts", resume=True, mlp_factor=2)
    with pytest.raises(EvoSpecError, match="--mlp-factor differs"):
        train_tiny(corpus, tmp_path / "parts", plan=plan, resume=True)
    train_tiny(corpus, tmp_path / "parts", plan=plan, resume=True, mlp_factor=2)
    assert same_tensors(weights_of(tmp_path / "parts"), weights_of(whole))

    train_tiny(corpus, tmp_path / "second", target=target, initial=str(whole))
    assert weights_of(tmp_path / "second")["layers.0.mlp.up_proj.weight"].shape[0] == 2 * width


def test_checkpoints_on_the_way_hold_a_drafter_that_loads(tmp_path: Path) -> None:
    seen = []

    def look(progress) -> None:
        if progress.step > 1:  # the first checkpoint follows the first report
            record = CheckpointStore(tmp_path / "out").load().record
            load_drafter(tmp_path / "out", torch.float32, torch.device("cpu"))
            seen.append(record.progress.step)

    train_tiny(tiny_corpus(tmp_path / "corpus"), tmp_path / "out", report=look, checkpoint_minutes=EVERY_STEP)
    assert seen == list(range(1, 8))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_steps_with_all_saved(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stopped, StopSignal() as stop:
        train_tiny(
            tiny_corpus(tmp_path / "corpus"),
            tmp_path / "out",
            report=lambda progress: signal.raise_signal(number) if progress.step == 2 else None,
            stop=stop,
        )
    assert stopped.value.exit_code == 128 + number
    assert "stopped at step 2" in str(stopped.value)
    assert "--resume" in str(stopped.value)
    assert CheckpointStore(tmp_path / "out").load().record.progress.step == 2
    load_drafter(tmp_path / "out", torch.float32, torch.device("cpu"))
    assert signal.getsignal(number) == before


def test_resuming_a_finished_run_trains_no_more_and_says_the_same(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    first = train_tiny(corpus, tmp_path / "out")
    weights = weights_of(tmp_path / "out")
    again = train_tiny(corpus, tmp_path / "out", resume=True)
    assert again.acceptance_length == first.acceptance_length
    assert again.optimizer_steps == first.optimizer_steps
    assert same_tensors(weights, weights_of(tmp_path / "out"))


def test_a_resumed_run_keeps_its_budget_but_may_use_less_memory(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    plan = replace(PLAN, optimizer_steps=None, minutes=600.0)
    interrupted(corpus, tmp_path / "out", 2, plan=plan)
    interrupted(corpus, tmp_path / "out", 3, plan=replace(plan, minutes=1e-9, logit_tokens=8), resume=True)
    record = CheckpointStore(tmp_path / "out").load().record
    assert record.identity.plan == replace(plan, logit_tokens=8)
    assert record.progress.step == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 4}, "steps is 4, was 3"),
        ({"learning_rate": 0.5, "seed": 3}, "learning_rate is 0.5, was 0.001; seed is 3, was 0"),
        ({"tokens_per_batch": 64}, "tokens_per_batch is 64, was 128"),
    ],
)
def test_other_settings_do_not_resume(tmp_path: Path, changes: dict, message: str) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    interrupted(corpus, tmp_path / "out", 1)
    with pytest.raises(EvoSpecError, match=message):
        train_tiny(corpus, tmp_path / "out", plan=replace(PLAN, **changes), resume=True)


def test_another_target_or_corpus_does_not_resume(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    interrupted(corpus, tmp_path / "out", 1)
    with pytest.raises(EvoSpecError, match="it is of another target"):
        train_tiny(corpus, tmp_path / "out", target=tiny_target(seed=5), resume=True)
    with pytest.raises(EvoSpecError, match="the corpus is another"):
        train_tiny(tiny_corpus(tmp_path / "other", seed=1), tmp_path / "out", resume=True)
    with pytest.raises(EvoSpecError, match="nothing to resume in"):
        train_tiny(corpus, tmp_path / "elsewhere", resume=True)


def test_initial_weights_draft_as_the_drafter_they_come_from(tmp_path: Path) -> None:
    """`fc` of an exported drafter reads raw features, that of a trainer scaled ones."""
    corpus, target = tiny_corpus(tmp_path / "corpus"), tiny_target()
    first = train_tiny(corpus, tmp_path / "first", target=target)
    untrained = replace(PLAN, optimizer_steps=1, learning_rate=1e-12, weight_decay=0.0)
    second = train_tiny(
        corpus, tmp_path / "second", target=target, plan=untrained, initial=str(tmp_path / "first")
    )
    assert second.acceptance_length == pytest.approx(first.acceptance_length, rel=0.02)
    left, right = weights_of(tmp_path / "first"), weights_of(tmp_path / "second")
    assert all(torch.allclose(left[name].float(), right[name].float(), rtol=1e-2) for name in left)
    provenance = Provenance.model_validate_json((tmp_path / "second" / "provenance.json").read_bytes())
    assert provenance.initial is not None
    assert provenance.initial.name == "first"
    assert "| began with | the weights of first |" in (tmp_path / "second" / "README.md").read_text()


def test_a_run_with_initial_weights_resumes_without_naming_them_again(tmp_path: Path) -> None:
    corpus, target = tiny_corpus(tmp_path / "corpus"), tiny_target()
    save_drafter(tiny_drafter(target), torch.arange(260), tmp_path / "first")
    save_drafter(tiny_drafter(target, seed=9), torch.arange(260), tmp_path / "other")
    interrupted(corpus, tmp_path / "out", 2, target=target, initial=str(tmp_path / "first"))
    with pytest.raises(EvoSpecError, match="--init differs"):
        train_tiny(corpus, tmp_path / "out", target=target, resume=True, initial=str(tmp_path / "other"))
    train_tiny(corpus, tmp_path / "out", target=target, resume=True)
    provenance = Provenance.model_validate_json((tmp_path / "out" / "provenance.json").read_bytes())
    assert provenance.initial is not None
    assert provenance.initial.name == "first"


def test_initial_weights_of_another_shape_or_tokenizer_are_refused(tmp_path: Path) -> None:
    corpus, target = tiny_corpus(tmp_path / "corpus"), tiny_target()
    drafter = tiny_drafter(target)
    for name, changes in {
        "vocabulary": {"vocab_size": 300},
        "tokenizer": {"tokenizer_fingerprint": "another"},
    }.items():
        drafter.config = tiny_drafter(target).config.model_copy(update=changes)
        save_drafter(drafter, torch.arange(260), tmp_path / name)
    with pytest.raises(DrafterMismatchError, match="vocabulary 300"):
        train_tiny(corpus, tmp_path / "out", initial=str(tmp_path / "vocabulary"))
    with pytest.raises(DrafterMismatchError, match="its tokenizer differs"):
        train_tiny(corpus, tmp_path / "out", initial=str(tmp_path / "tokenizer"))
    with pytest.raises(ModelNotFoundError, match="no drafter at"):
        train_tiny(corpus, tmp_path / "out", initial=str(tmp_path / "nothing"))
    assert not (tmp_path / "out").exists()


def test_a_corpus_too_small_to_hold_out_is_trained_and_not_measured(tmp_path: Path) -> None:
    result = train_tiny(tiny_corpus(tmp_path / "corpus", documents=3), tmp_path / "out")
    assert result.acceptance_length is None
    assert result.measurements == ()
    assert "not measured" in (tmp_path / "out" / "README.md").read_text()


def test_averaged_weights_are_what_is_exported_and_measured(tmp_path: Path) -> None:
    target = tiny_target()
    drafter = tiny_drafter(target).requires_grad_(True)
    target.tap(drafter.config.tap_layers)
    trainer = DrafterTrainer(target, drafter, replace(PLAN, ema=0.9))
    corpus = tiny_corpus(tmp_path)
    trainer.train(corpus, torch.arange(24).numpy(), lambda progress: None)
    own = trainer.drafter.norm.weight.detach().clone()
    with trainer.averaged():
        averaged = trainer.drafter.norm.weight.detach().clone()
    assert torch.equal(trainer.drafter.norm.weight, own)
    assert not torch.equal(averaged, own)
    assert torch.equal(trainer.export().norm.weight, averaged)
