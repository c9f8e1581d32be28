"""Short training runs of a tiny drafter, for tests of what surrounds training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from evospec.models.target import Target
from evospec.training.corpus import Corpus, Document, write_corpus
from evospec.training.pipeline import RunSettings, train_drafter
from evospec.training.plan import TrainingPlan
from evospec.training.progress import Progress
from evospec.training.provenance import TrainingResult
from evospec.training.stopping import StopSignal
from tests.tiny import tiny_target

PLAN = TrainingPlan(
    optimizer_steps=8, steps=3, tokens_per_batch=128, logit_tokens=64, learning_rate=1e-3, warmup=0.1
)
Callback = Callable[[Progress], None]


def tiny_corpus(folder: Path, documents: int = 24, seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(16, 40, documents)
    return write_corpus(
        [Document(rng.integers(0, 256, length), int(rng.integers(2, 8))) for length in lengths], folder, {}
    )


def ignore(progress: Progress) -> None:
    pass


def train_tiny(
    corpus: Corpus,
    out: Path,
    *,
    plan: TrainingPlan = PLAN,
    target: Target | None = None,
    report: Callback = ignore,
    stop: StopSignal | None = None,
    **settings: Any,
) -> TrainingResult:
    return train_drafter(
        target or tiny_target(),
        "tiny",
        corpus,
        plan,
        RunSettings(out, **settings),
        report,
        stop or StopSignal(),
    )


def stop_after(step: int, stop: StopSignal, number: int = 15) -> Callback:
    """Signals, as a handler does, once a step is done."""

    def report(progress: Progress) -> None:
        if progress.step == step:
            stop.number = number

    return report


def checkpoint_tensors(out: Path) -> dict[str, Tensor]:
    return load_file(out / "checkpoint" / "state.safetensors")


def same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def weights_of(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")
