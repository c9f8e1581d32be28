"""A tiny target, and a drafter that has learned its answers by heart.

A random drafter has next to nothing accepted, so a useless adapter would cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evospec.models.drafter import Drafter
from evospec.models.drafter_store import load_drafter, save_drafter
from evospec.models.target import Target
from evospec.training.corpus import Document, write_corpus
from evospec.training.plan import TrainingPlan
from evospec.training.trainer import DrafterTrainer
from tests.chaos.kit.known_prompts import KnownPrompt, known_prompts
from tests.tiny import TinyFolders, tiny_drafter, tiny_model, tiny_tokenizer

WIDE = 1536  # of the wide drafter's MLP
CERTAINTY = 8.0  # times as sure of its choices as a random target is
PLAN = TrainingPlan(
    minutes=60.0, optimizer_steps=100, learning_rate=1e-2, weight_decay=0.0, steps=3, tokens_per_batch=2048
)


@dataclass(frozen=True, slots=True)
class LearnedModels:
    """Folders to name in a config, and the prompts whose answers the drafter knows."""

    folders: TinyFolders
    prompts: tuple[KnownPrompt, ...]

    def drafter(self) -> Drafter:
        """As the replicas load it."""
        return load_drafter(self.folders.drafter, torch.float32, torch.device("cpu")).drafter


def learned_models(root: Path, *, prompts: int = 12, tokens: int = 64) -> LearnedModels:
    """Makes both models below `root`; training takes some seconds on one core."""
    target = _target()
    known = _saved(target, root, prompts, tokens)
    drafter = _taught(target, tiny_drafter(target), known, root / "corpus")
    return _with_drafter(target, drafter, known, root)


def wide_models(root: Path, *, prompts: int = 12, tokens: int = 64) -> LearnedModels:
    """As `learned_models`, with an untrained drafter whose adapters of rank 256 have 5 MB."""
    target = _target()
    known = _saved(target, root, prompts, tokens)
    config = tiny_drafter(target).config.model_copy(update={"intermediate_size": WIDE})
    return _with_drafter(target, Drafter(config), known, root)


def _target() -> Target:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.mul_(CERTAINTY)
    return Target(model, tiny_tokenizer())


def _saved(target: Target, root: Path, prompts: int, tokens: int) -> tuple[KnownPrompt, ...]:
    target.model.save_pretrained(root / "target")
    target.tokenizer.save_pretrained(root / "target")
    return known_prompts(root / "target", prompts, tokens)


def _with_drafter(
    target: Target, drafter: Drafter, known: tuple[KnownPrompt, ...], root: Path
) -> LearnedModels:
    save_drafter(drafter, torch.arange(target.vocab_size), root / "drafter")
    return LearnedModels(TinyFolders(root / "target", root / "drafter"), known)


def _taught(target: Target, drafter: Drafter, known: tuple[KnownPrompt, ...], folder: Path) -> Drafter:
    documents = [Document(np.array([*one.prompt_ids, *one.expected]), len(one.prompt_ids)) for one in known]
    corpus = write_corpus(documents, folder, {})
    target.tap(drafter.config.tap_layers)
    torch.manual_seed(0)
    trainer = DrafterTrainer(target, drafter.requires_grad_(True), PLAN)
    trainer.train(corpus, np.arange(len(known)), lambda _: None)
    return trainer.export()
