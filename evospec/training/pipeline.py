"""`evospec train`: from nothing but a target to a drafter folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from evospec import __version__
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.drafter_store import save_drafter
from evospec.models.target import Target, default_tap_layers
from evospec.training.corpus import Corpus, rank_tokens, write_corpus
from evospec.training.data import TrainingData
from evospec.training.rollout import RolloutPlan, write_conversations
from evospec.training.trainer import DrafterTrainer, Progress, TrainingPlan

PROVENANCE_FILE = "provenance.json"
_HELD_OUT = 64


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What came out: tokens per greedy cycle on held-out conversations, and how much went in."""

    acceptance_length: float
    accuracy_by_step: tuple[float, ...]
    corpus_tokens: int
    trained_tokens: int
    optimizer_steps: int
    tokens_per_s: float


def drafter_config(target: Target, target_name: str, longest: int) -> DrafterConfig:
    """One decoder layer of the target's own shape."""
    settings = target.model.config.to_dict()
    heads = settings["num_attention_heads"]
    return DrafterConfig(
        hidden_size=target.hidden_size,
        intermediate_size=settings["intermediate_size"],
        num_attention_heads=heads,
        num_key_value_heads=settings["num_key_value_heads"],
        head_dim=settings.get("head_dim") or target.hidden_size // heads,
        vocab_size=target.vocab_size,
        tap_layers=default_tap_layers(target.layer_count),
        rope_theta=10_000.0,
        rms_norm_eps=settings.get("rms_norm_eps", 1e-6),
        max_positions=min(longest, target.max_length),
        target_fingerprint=target.fingerprint.target,
        tokenizer_fingerprint=target.fingerprint.tokenizer,
        target_name=target_name,
    )


def prepare_corpus(
    target: Target,
    data: TrainingData,
    plan: RolloutPlan,
    folder: Path,
    report: Callable[[int, float], None],
) -> Corpus:
    """Lets the target write the corpus and stores it."""
    documents = write_conversations(target, data.openings, data.prompts, plan, report)
    manifest = {
        "source": "written by the target itself",
        "openings": len(data.openings),
        "prompts": len(data.prompts),
        "conversations": len(documents),
        "tokens": int(sum(len(document.tokens) for document in documents)),
        "plan": asdict(plan),
    }
    return write_corpus(documents, folder, manifest)


def train_drafter(
    target: Target,
    target_name: str,
    corpus: Corpus,
    plan: TrainingPlan,
    folder: Path,
    report: Callable[[Progress], None],
    notes: dict[str, object],
) -> TrainingReport:
    """Trains on a corpus, evaluates on conversations kept apart, and saves the drafter folder."""
    torch.manual_seed(plan.seed)
    config = drafter_config(target, target_name, longest=8192)
    target.tap(config.tap_layers)
    held_out = min(_HELD_OUT, len(corpus) // 4)  # conversations are independent: the last ones will do
    trainer = DrafterTrainer(target, Drafter(config), plan)
    progress = trainer.train(corpus, np.arange(len(corpus) - held_out), report)
    counts = trainer.evaluate([corpus[index] for index in range(len(corpus) - held_out, len(corpus))])
    result = TrainingReport(
        acceptance_length=counts.acceptance_length,
        accuracy_by_step=tuple(progress.accuracy),
        corpus_tokens=corpus.token_count,
        trained_tokens=progress.tokens,
        optimizer_steps=progress.step,
        tokens_per_s=progress.tokens_per_s,
    )
    ranks = rank_tokens(corpus.answer_frequencies(target.vocab_size))
    save_drafter(trainer.export(), torch.from_numpy(ranks[: min(65_536, len(ranks))].copy()), folder)
    provenance = {
        "evospec": __version__,
        "target": target_name,
        "data": corpus.manifest,
        "training": asdict(plan),
        "result": asdict(result),
        **notes,
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n")
    return result
