"""From a config to a trainer, without loading the target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evospec.align.trace_limits import TraceLimits
from evospec.align.trainer import AlignmentTrainer
from evospec.config import AlignmentConfig, Config
from evospec.errors import EvoSpecError
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.drafter_store import LoadedDrafter, load_drafter
from evospec.models.fingerprint import fingerprint_module
from evospec.models.inspection import inspect_drafter, inspect_target
from evospec.models.loading import load_tokenizer, pick_device, pick_dtype
from evospec.models.tables import TokenTables
from evospec.vocab.core import core_tokens
from evospec.vocab.live_core import LiveCore
from evospec.vocab.policy import is_statistical, successor_limits
from evospec.vocab.tenants import TenantIndexes
from evospec.wire import Fingerprints


def build_trainer(config: Config) -> AlignmentTrainer:
    """Loads the drafter and the target's token tables, nothing else of the target.

    Raises:
        ModelNotFoundError: target or drafter is not to be had.
        DrafterMismatchError: the drafter was made for another target.
        EvoSpecError: no drafter is configured, or it is too short for the configured traces.
    """
    model = config.model
    target = inspect_target(model.target)
    folder = inspect_drafter(model, target)
    if folder is None:
        raise EvoSpecError("alignment needs a drafter: set model.drafter, or alignment.enabled to false")
    device = pick_device(model.device)
    tables = TokenTables.from_folder(target.folder, pick_dtype(model.dtype, device), device)
    loaded = load_drafter(folder, torch.float32, device, target.layer_count)
    fingerprints = Fingerprints(
        target=target.fingerprint.target,
        drafter=fingerprint_module(loaded.drafter),
        tokenizer=target.fingerprint.tokenizer,
    )
    special = load_tokenizer(model.target).all_special_ids
    return trainer_over(config, loaded, tables, special, fingerprints)


def trainer_over(
    config: Config,
    loaded: LoadedDrafter,
    tables: TokenTables,
    special_ids: Sequence[int],
    fingerprints: Fingerprints,
) -> AlignmentTrainer:
    """A trainer for a drafter at hand; it copies the drafter and shares the target's tables.

    Raises:
        EvoSpecError: the drafter has a head of its own, or is too short for the configured traces.
    """
    check_alignable(loaded.drafter.config)
    ranks, vocabulary = loaded.core_ranks.numpy(), config.vocabulary
    size = min(vocabulary.core, tables.vocab_size)
    core = core_tokens(ranks, size, tables.vocab_size, special_ids)
    return AlignmentTrainer(
        config.alignment,
        loaded.drafter,
        loaded.drafter.tables(tables),
        torch.from_numpy(core),
        trace_limits(config.alignment, loaded.drafter, fingerprints),
        draft_length=config.engine.draft_length,
        core=LiveCore(ranks, tables.vocab_size, size=vocabulary.capacity),
        successors=_successors(config, tables.vocab_size, core),
    )


def _successors(config: Config, vocab_size: int, core: np.ndarray) -> TenantIndexes | None:
    """What the aligner learns of successors for the replicas; None where none of them asks."""
    settings, alignment = config.vocabulary, config.alignment
    if not alignment.successor_mb or not is_statistical(settings):
        return None
    limits = successor_limits(settings, alignment.successor_half_life)
    return TenantIndexes(vocab_size, core, limits, settings.tenants)


def check_alignable(drafter: DrafterConfig) -> None:
    """Raises EvoSpecError for a drafter with a head of its own: traces are scored by the target's rows."""
    if drafter.draft_vocab_size is not None:
        raise EvoSpecError(
            "a drafter with a head of its own cannot be aligned online: set alignment.enabled to false"
        )


def trace_limits(config: AlignmentConfig, drafter: Drafter, fingerprints: Fingerprints) -> TraceLimits:
    """Limits of the traces that engines with this config and drafter record."""
    shape = drafter.config
    return TraceLimits(
        vocab_size=shape.vocab_size,
        feature_size=shape.feature_size,
        top_k=min(config.trace_top_k, shape.vocab_size),
        max_positions=config.trace_positions,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        context_size=shape.target_hidden,
        max_past=config.trace_past,
        max_length=shape.max_positions,
        fingerprints=fingerprints,
    )
