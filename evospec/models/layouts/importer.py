"""From a published EAGLE-3 checkpoint to a drafter's config and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from evospec.errors import ModelNotFoundError, UnsupportedModelError
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.layouts.checkpoint import MAP, MASK, Checkpoint
from evospec.models.layouts.settings import Layout, PublishedSettings, read_settings
from evospec.models.target import default_tap_layers

_HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"
_HEAD_IDS = "head_ids"


def published_config(
    folder: Path, raw: Mapping[str, Any], layout: Layout, target_layers: int | None
) -> DrafterConfig:
    """Config of the drafter in `folder`, with every tensor's name and shape checked.

    Args:
        raw: its config.json.
        target_layers: decoder layers of the target, by which most checkpoints' taps are meant.

    Raises:
        ModelNotFoundError: settings or tensors are missing, or have other shapes.
        UnsupportedModelError: it is a variant that we would compute differently.
    """
    where = folder / "config.json"
    settings = read_settings(raw, layout, where)
    checkpoint = Checkpoint.open(folder)
    heads = settings.num_attention_heads
    taps = settings.taps
    if taps is None and target_layers is not None:
        taps = default_tap_layers(target_layers)
    if taps is None:
        raise ModelNotFoundError(f"{where} names no target layers, and the target is not known")
    fields = {
        "origin": layout,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": settings.num_key_value_heads or heads,
        "head_dim": settings.head_dim or settings.hidden_size // heads,
        "vocab_size": settings.vocab_size,
        "tap_layers": taps,
        "rope_theta": settings.rope_theta,
        "rope_scaling": settings.rope_scaling,
        "rms_norm_eps": settings.rms_norm_eps,
        "max_positions": settings.max_position_embeddings,
        "target_hidden_size": settings.target_hidden_size,
        "draft_vocab_size": _head_rows(settings, checkpoint),
        "own_embedding": _EMBEDDING in checkpoint,
        "norm_before_residual": settings.norm_before_residual,
        "norm_before_fc": settings.norm_before_fc,
        "fc_norm": settings.fc_norm,
        "norm_output": settings.norm_output,
        "target_name": settings.verifier,
    }
    try:
        config = DrafterConfig.model_validate(fields)
    except ValidationError as error:
        raise UnsupportedModelError(f"drafter {folder} cannot be used: {error.errors()[0]['msg']}") from None
    _check_tensors(config, checkpoint)
    return config


def load_published(folder: Path, config: DrafterConfig) -> dict[str, Tensor]:
    """Weights of the drafter in `folder`, under the names of `Drafter`'s state.

    Raises:
        ModelNotFoundError: the token map is not one.
    """
    checkpoint = Checkpoint.open(folder)
    weights = {name: checkpoint.read(name) for name in checkpoint.places if name not in (MAP, MASK)}
    if config.draft_vocab_size is not None:
        ids = _read_head_ids(checkpoint, config.draft_vocab_size, config.vocab_size)
        if config.maps_head:
            weights[_HEAD_IDS] = ids
    return weights


def _head_rows(settings: PublishedSettings, checkpoint: Checkpoint) -> int | None:
    """Rows of the checkpoint's own head; None where the target's is meant."""
    rows = settings.draft_vocab_size or settings.vocab_size
    if _HEAD in checkpoint:
        if rows < settings.vocab_size and MAP not in checkpoint:
            raise ModelNotFoundError(
                f"drafter {checkpoint.folder} has a head of {rows} of {settings.vocab_size} tokens but no "
                f"{MAP} tensor that says which"
            )
        return rows
    if settings.tie_word_embeddings and _EMBEDDING in checkpoint:
        raise UnsupportedModelError(
            f"drafter {checkpoint.folder} ties its head to embeddings of its own, which is not supported"
        )
    if rows < settings.vocab_size or MAP in checkpoint:
        raise ModelNotFoundError(f"drafter {checkpoint.folder} lacks tensor {_HEAD}")
    return None


def _check_tensors(config: DrafterConfig, checkpoint: Checkpoint) -> None:
    """Raises unless the checkpoint holds exactly the tensors of such a drafter."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Drafter(config).state_dict().items()}
    expected.pop(_HEAD_IDS, None)
    folder, found = checkpoint.folder, set(checkpoint.places) - {MAP, MASK}
    missing = sorted(expected.keys() - found)
    if missing:
        raise ModelNotFoundError(f"drafter {folder} lacks {_some(missing)}")
    extra = sorted(found - expected.keys())
    if any(name.startswith("layers.") and not name.startswith("layers.0.") for name in extra):
        raise UnsupportedModelError(f"drafter {folder} has more than one decoder layer: not supported")
    if extra:
        raise UnsupportedModelError(
            f"drafter {folder} has {_some(extra)}, which an EAGLE-3 drafter of this config has not"
        )
    for name, shape in expected.items():
        if checkpoint.shape(name) != shape:
            raise ModelNotFoundError(
                f"drafter {folder}: {name} has shape {list(checkpoint.shape(name))}, "
                f"its config means {list(shape)}"
            )


def _read_head_ids(checkpoint: Checkpoint, rows: int, vocab: int) -> Tensor:
    """Token id of each head row, int64 [rows]: draft id + its offset in d2t."""
    folder = checkpoint.folder
    ids = torch.arange(rows)
    if MAP in checkpoint:
        offsets = checkpoint.read(MAP)
        if offsets.shape != (rows,) or offsets.is_floating_point():
            raise ModelNotFoundError(
                f"drafter {folder}: {MAP} must be {rows} integers, it is {offsets.dtype} of shape "
                f"{list(offsets.shape)}"
            )
        ids = ids + offsets.long()
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ModelNotFoundError(
            f"drafter {folder}: {MAP} maps draft id {row} to token {int(ids[row])}, outside the vocabulary "
            f"of {vocab} (it must hold offsets: token id = draft id + offset)"
        )
    if len(ids.unique()) < rows:
        raise ModelNotFoundError(f"drafter {folder}: {MAP} maps two draft ids to the same token")
    if rows == vocab and not torch.equal(ids, torch.arange(rows)):
        raise UnsupportedModelError(f"drafter {folder}: {MAP} reorders a full vocabulary: not supported")
    _check_mask(checkpoint, ids, vocab)
    return ids


def _check_mask(checkpoint: Checkpoint, ids: Tensor, vocab: int) -> None:
    if MASK not in checkpoint:
        return
    covered = torch.zeros(vocab, dtype=torch.bool)
    covered[ids] = True
    mask = checkpoint.read(MASK)
    if mask.shape != covered.shape or not torch.equal(mask.bool(), covered):
        raise ModelNotFoundError(
            f"drafter {checkpoint.folder}: {MAP} and {MASK} do not describe the same tokens of a "
            f"vocabulary of {vocab}"
        )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{rest}"
