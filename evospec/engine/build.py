"""From a config to a ready engine."""

from __future__ import annotations

import torch

from evospec.align.recorder import TraceRecorder
from evospec.config import Config
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.errors import DrafterMismatchError
from evospec.models.attention import ATTENTION_NAME, register_attention
from evospec.models.drafter_store import (
    LoadedDrafter,
    check_drafter,
    load_drafter,
    read_config,
    resolve_drafter,
)
from evospec.models.fingerprint import fingerprint_module
from evospec.models.loading import load_model, load_tokenizer, pick_device, pick_dtype, resolve_target
from evospec.models.target import Target
from evospec.vocab.frequency import corpus_ranks
from evospec.vocab.policy import build_policy, head_core
from evospec.vocab.row_cost import seconds_per_row
from evospec.vocab.semantic import SemanticSource
from evospec.wire import Fingerprints


def load_target(config: Config) -> Target:
    """Loads the target a config names.

    Raises:
        ModelNotFoundError, UnsupportedModelError.
    """
    settings = config.model
    if settings.threads:
        torch.set_num_threads(settings.threads)
    register_attention()
    device = pick_device(settings.device)
    folder = resolve_target(settings.target)
    model = load_model(folder, pick_dtype(settings.dtype, device), device, ATTENTION_NAME)
    return Target(model, load_tokenizer(settings.target))


def load_own_drafter(config: Config, target: Target) -> LoadedDrafter | None:
    """Loads and checks the drafter a config names for this target; None decodes plainly.

    Raises:
        ModelNotFoundError: there is none.
        DrafterMismatchError: it was made for another target.
    """
    settings = config.model
    if settings.drafter is None:
        return None
    folder = resolve_drafter(settings.drafter, settings.target, target.fingerprint)
    described = read_config(folder, target.layer_count)
    check_drafter(
        described,
        target.fingerprint,
        target.hidden_size,
        target.vocab_size,
        strict=settings.drafter_check == "strict",
    )
    loaded = load_drafter(folder, target.dtype, target.device, target.layer_count)
    loaded.drafter.share_embedding(target.tables)
    if described.max_positions < min(config.engine.max_length, target.max_length):
        raise DrafterMismatchError(
            f"the drafter reaches {described.max_positions} positions: lower engine.max_length to that"
        )
    target.tap(described.tap_layers)
    return loaded


def build_engine(config: Config, target: Target, loaded: LoadedDrafter | None) -> Engine:
    """An engine over models at hand."""
    if loaded is None:
        return Engine(target, None, config.engine, _fingerprints(target, None))
    always = sorted(target.eos_ids | set(target.tokenizer.all_special_ids))
    ranks = loaded.core_ranks.numpy()
    tables = loaded.drafter.tables(target.tables)
    vocabulary = build_policy(
        config.vocabulary,
        tables,
        ranks,
        always,
        config.engine.max_batch,
        lambda file: corpus_ranks(file, target.tokenizer, target.vocab_size),
        seconds_per_row(tables),
    )
    fingerprints = _fingerprints(target, loaded)
    wishes = vocabulary.wishes
    semantic = None
    if wishes.retrieval and config.semantic.enabled:
        core = head_core(tables, ranks, config.vocabulary.core, always)
        semantic = SemanticSource(config.semantic, core.tolist(), fingerprints.target)
    recorder = TraceRecorder(config.alignment, fingerprints) if config.alignment.enabled else None
    return Engine(
        target,
        loaded.drafter,
        config.engine,
        fingerprints,
        learners=Learners(
            vocabulary=vocabulary,
            ranked_k=wishes.ranked,
            prompt_ranked=wishes.prompt_ranked,
            drafted=wishes.drafted,
            recorder=recorder,
            trace_k=config.alignment.trace_top_k,
            semantic=semantic,
        ),
        adapters=config.alignment.adapters,
    )


def load_engine(config: Config) -> Engine:
    """Loads everything a config names and builds the engine."""
    target = load_target(config)
    return build_engine(config, target, load_own_drafter(config, target))


def _fingerprints(target: Target, loaded: LoadedDrafter | None) -> Fingerprints:
    drafter = "" if loaded is None else fingerprint_module(loaded.drafter)
    return Fingerprints(
        target=target.fingerprint.target, drafter=drafter, tokenizer=target.fingerprint.tokenizer
    )
