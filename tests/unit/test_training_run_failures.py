"""What goes wrong in a training run ends in one line, and what was saved before stays whole."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evospec.errors import EvoSpecError
from evospec.models.drafter_store import load_drafter
from evospec.models.kv_cache import KVCache, Window
from evospec.models.target import Target, TargetOutput
from evospec.training.checkpoint import CheckpointStore
from evospec.training.disk import DiskError, replacing
from evospec.training.export import export_drafter
from evospec.training.memory import OutOfMemoryError, memory_errors, rollout_advice, training_advice
from evospec.training.plan import TrainingPlan
from tests.tiny import tiny_drafter, tiny_model, tiny_target, tiny_tokenizer
from tests.unit.training_runs import (
    PLAN,
    checkpoint_tensors,
    same_tensors,
    tiny_corpus,
    train_tiny,
    weights_of,
)

EVERY_STEP = 1e-9  # minutes


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond a size fail, as they do on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class FailingTarget(Target):
    """A tiny target whose passes raise, or give NaN, after so many of them."""

    def __init__(self, after: int, error: Exception | None = None) -> None:
        super().__init__(tiny_model(), tiny_tokenizer())
        self._left = after
        self._error = error

    def forward(self, token_ids: Tensor, window: Window, cache: KVCache) -> TargetOutput:
        output = super().forward(token_ids, window, cache)
        self._left -= 1
        if self._left >= 0:
            return output
        if self._error is not None:
            raise self._error
        return replace(output, hidden=output.hidden * float("nan"))


def train_short(*arguments, **settings):
    """Its first measurement, a target pass of its own, comes after five steps."""
    return train_tiny(*arguments, plan=replace(PLAN, optimizer_steps=40), **settings)


def test_nan_stops_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    corpus, out = tiny_corpus(tmp_path / "corpus"), tmp_path / "out"
    with pytest.raises(EvoSpecError) as failed:
        train_short(corpus, out, target=FailingTarget(after=3), checkpoint_minutes=EVERY_STEP)
    line = str(failed.value)
    assert "training step 4: loss or gradient is not finite" in line
    assert "keeps the drafter of step 3" in line
    assert f"--init {out}" in line
    assert "--learning-rate below 0.001" in line
    assert "\n" not in line
    assert CheckpointStore(out).load().record.progress.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint_tensors(out).values())
    load_drafter(out, torch.float32, torch.device("cpu"))


def test_nan_before_any_checkpoint_says_that_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(EvoSpecError, match=r"step 1: .* nothing was saved before it"):
        train_short(tiny_corpus(tmp_path / "corpus"), tmp_path / "out", target=FailingTarget(after=0))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    corpus, out = tiny_corpus(tmp_path / "corpus"), tmp_path / "out"
    kept = {}

    def fill_disk(progress) -> None:
        if progress.step == 3:
            kept.update(checkpoint_tensors(out))
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(DiskError) as failed:
            train_short(corpus, out, report=fill_disk, checkpoint_minutes=EVERY_STEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    line = str(failed.value)
    assert line.startswith(f"cannot write to {out / 'checkpoint'}: ")
    assert "the checkpoint of step 2 is whole: free 1 MiB there, then continue with --resume" in line
    assert CheckpointStore(out).load().record.progress.step == 2
    assert same_tensors(checkpoint_tensors(out), kept)
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["state.safetensors"]
    load_drafter(out, torch.float32, torch.device("cpu"))


def test_a_disk_that_fills_up_while_exporting_leaves_the_drafter_before(tmp_path: Path) -> None:
    target = tiny_target()
    export_drafter(tiny_drafter(target), torch.arange(260), tmp_path)
    before = weights_of(tmp_path)
    with files_of_at_most(10_000), pytest.raises(Exception, match="too large"):
        export_drafter(tiny_drafter(target, seed=8), torch.arange(260), tmp_path)
    assert same_tensors(weights_of(tmp_path), before)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocabulary.safetensors",
    }


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_option_to_lower(tmp_path: Path, error: Exception) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutOfMemoryError) as failed:
        train_tiny(
            tiny_corpus(tmp_path / "corpus"),
            out,
            plan=replace(PLAN, optimizer_steps=40, tokens_per_batch=512),
            target=FailingTarget(after=2, error=error),
            checkpoint_minutes=EVERY_STEP,
        )
    assert str(failed.value).startswith("out of memory: lower --batch-tokens to 256 (")
    assert "\n" not in str(failed.value)
    assert CheckpointStore(out).load().record.progress.step == 2


def test_advice_follows_the_larger_tensors() -> None:
    config = tiny_drafter(tiny_target()).config
    wide = config.model_copy(update={"vocab_size": 150_000})
    plan = TrainingPlan(logit_tokens=4096, tokens_per_batch=512)
    assert training_advice(plan, wide) == "lower --logit-tokens to 2048 and use --resume"
    assert training_advice(replace(plan, logit_tokens=64), wide) == "lower --batch-tokens to 256"
    least = replace(plan, logit_tokens=64, tokens_per_batch=256)
    assert training_advice(least, wide).startswith("free memory")
    assert rollout_advice(1024) == "lower --rows to 512"
    assert rollout_advice(1) == "free memory: --rows is 1 already"


def test_errors_that_are_not_about_memory_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(lambda: "unused"):
        raise RuntimeError("shapes do not match")


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    corpus, out = tiny_corpus(tmp_path / "corpus"), tmp_path / "out"
    train_tiny(corpus, out)
    path = CheckpointStore(out).path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvoSpecError, match=r"checkpoint .* cannot be read"):
        train_tiny(corpus, out, resume=True)
    path.write_bytes((out / "model.safetensors").read_bytes())
    with pytest.raises(EvoSpecError, match="is not a checkpoint of this release"):
        train_tiny(corpus, out, resume=True)


def test_a_damaged_history_is_told(tmp_path: Path) -> None:
    corpus, out = tiny_corpus(tmp_path / "corpus"), tmp_path / "out"
    train_tiny(corpus, out)
    (out / "history.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(EvoSpecError, match=r"history\.jsonl is damaged"):
        train_tiny(corpus, out, resume=True)
