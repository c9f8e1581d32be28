"""`evospec train`: from nothing but a target to a drafter folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.target import Target, default_tap_layers
from evospec.training.assembly import AssemblyPlan, CorpusBuilder
from evospec.training.checkpoint import Checkpoint, CheckpointStore, Identity, check_resumable
from evospec.training.conversations import RolloutPlan, write_conversations
from evospec.training.corpus import Corpus, rank_tokens
from evospec.training.data import TrainingData
from evospec.training.fingerprint import fingerprint_corpus
from evospec.training.initial import InitialDrafter, load_initial
from evospec.training.outcome import conclude
from evospec.training.plan import TrainingPlan
from evospec.training.progress import Progress
from evospec.training.provenance import TrainingResult
from evospec.training.run import RunInputs, TrainingRun
from evospec.training.seeds import Seeds
from evospec.training.split import split_documents
from evospec.training.stopping import StopSignal
from evospec.training.trainer import DrafterTrainer
from evospec.training.warm_start import widened

_CORE_RANKS = 65_536  # most that ship with a drafter
_LONGEST = 8192  # positions that a drafter is made for, when its target reaches as far
# What a config says of the target and not of the drafter's shape.
_OF_TARGET = {"origin", "target_name", "target_fingerprint", "tokenizer_fingerprint", "max_positions"}
_SCALED_ON = 16  # documents that the feature scale of an initial drafter is measured on


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Where a run writes, how often, and what it goes on from.

    Attributes:
        resume: continue the run that the folder holds a checkpoint of.
        initial: drafter to begin with: a folder or a shipped name.
        mlp_factor: width of the drafter's MLP, in widths of the target's; that of `initial` where it
            is wider.
    """

    out: Path
    checkpoint_minutes: float = 2.0
    resume: bool = False
    initial: str | None = None
    mlp_factor: int = 1


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
        rope_theta=_rope_theta(settings),
        rms_norm_eps=settings.get("rms_norm_eps", 1e-6),
        max_positions=min(longest, target.max_length),
        target_fingerprint=target.fingerprint.target,
        tokenizer_fingerprint=target.fingerprint.tokenizer,
        target_name=target_name,
    )


def _rope_theta(settings: dict[str, Any]) -> float:
    """The target's own base of rotary frequencies, of its full-attention layers."""
    rope = settings.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    return float(rope.get("rope_theta", 10_000.0))


def prepare_corpus(
    target: Target,
    data: TrainingData,
    plan: RolloutPlan,
    folder: Path,
    report: Callable[[float, str], None],
) -> Corpus:
    """Reads the user's texts, lets the target write its own, and stores both.

    Args:
        report: called with the share done, first of reading and then of writing, and a note.
    """
    seeds = Seeds.shipped(data.prompts)
    settings: dict[str, JsonValue] = {"prompts": len(seeds.prompts)}
    with CorpusBuilder(target, folder, AssemblyPlan(seed=plan.seed)) as builder:
        builder.read(data.sources, lambda tokens, share: report(share, f"{tokens:,} tokens read"))
        if data.on_policy_weight != 0:
            settings |= {"openings": len(seeds.openings), "tasks": len(seeds.tasks), "plan": asdict(plan)}
            documents = write_conversations(
                target, seeds, plan, lambda tokens, share: report(share, f"{tokens:,} tokens written")
            )
            builder.write(documents, data.on_policy_weight)
        return builder.finish(settings, data.prompt_reports)


def train_drafter(
    target: Target,
    target_name: str,
    corpus: Corpus,
    plan: TrainingPlan,
    settings: RunSettings,
    report: Callable[[Progress], None],
    stop: StopSignal,
) -> TrainingResult:
    """Trains on a corpus, measures on conversations kept apart, and leaves a drafter folder.

    A resumed run keeps the budget it began with.

    Raises:
        StoppedError: `stop` was signalled; checkpoint and drafter are saved.
        EvoSpecError: nothing to resume, or a run of other settings; a drafter that does not fit;
            training diverged; memory or disk is full.
    """
    torch.manual_seed(plan.seed)
    checkpoint = CheckpointStore(settings.out).load() if settings.resume else None
    initial = None if settings.initial is None else load_initial(settings.initial, target, target_name)
    identity = Identity(
        plan=plan if checkpoint is None else replace(plan, minutes=checkpoint.record.identity.plan.minutes),
        config=_run_config(target, target_name, checkpoint, initial, settings.mlp_factor),
        corpus=fingerprint_corpus(corpus),
        initial=None if initial is None else initial.origin,
    )
    if checkpoint is not None:
        identity = _continued(checkpoint.record.identity, identity, settings.out)
    inputs = RunInputs(
        corpus=corpus,
        split=split_documents(corpus),
        identity=identity,
        core_ranks=torch.from_numpy(rank_tokens(corpus.answer_frequencies(target.vocab_size))[:_CORE_RANKS]),
        out=settings.out,
        checkpoint_minutes=settings.checkpoint_minutes,
    )
    target.tap(identity.config.tap_layers)
    trainer = DrafterTrainer(target, Drafter(identity.config), identity.plan)
    run = TrainingRun(trainer, inputs)
    if checkpoint is not None:
        run.resume(checkpoint)
    elif initial is not None:
        indices = inputs.split.training[:: max(len(inputs.split.training) // _SCALED_ON, 1)]
        drafter = widened(initial.drafter, identity.config.intermediate_size)
        trainer.start_from(drafter, [corpus[int(index)] for index in indices[:_SCALED_ON]])
    run.train(report, stop)
    return conclude(run, inputs, target_name)


def _run_config(
    target: Target,
    target_name: str,
    checkpoint: Checkpoint | None,
    initial: InitialDrafter | None,
    mlp_factor: int,
) -> DrafterConfig:
    """Shape of the drafter to train: that of the drafter it goes on from, or the target's own, with the MLP
    at least as wide as asked for."""
    fresh = drafter_config(target, target_name, longest=_LONGEST)
    shape = fresh if initial is None else initial.drafter.config
    if checkpoint is not None:
        saved = checkpoint.record.identity
        shape = fresh if saved.initial is None else saved.config
        fresh = fresh.model_copy(update={"target_name": saved.config.target_name})
    width = max(shape.intermediate_size, mlp_factor * fresh.intermediate_size)
    return shape.model_copy(
        update={**fresh.model_dump(include=_OF_TARGET), "intermediate_size": width},
    )


def _continued(saved: Identity, now: Identity, out: Path) -> Identity:
    """The identity of a resumed run; --init need not be given again."""
    if now.initial is None:
        now = now.model_copy(update={"initial": saved.initial})
    check_resumable(saved, now, out)
    return now
