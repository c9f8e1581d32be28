"""The drafter whose weights a run begins with: a second stage, on other data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evospec.errors import DrafterMismatchError
from evospec.models.drafter import Drafter
from evospec.models.drafter_store import check_drafter, load_drafter, read_config, resolve_drafter
from evospec.models.fingerprint import fingerprint_module
from evospec.models.target import Target
from evospec.training.checkpoint import Initial


@dataclass(frozen=True, slots=True)
class InitialDrafter:
    """Weights in float32, reading raw features."""

    drafter: Drafter
    origin: Initial


def load_initial(name: str, target: Target, target_name: str) -> InitialDrafter:
    """Loads a drafter to go on from. Its target may have other weights, of the same shape.

    Raises:
        ModelNotFoundError: there is none, or it is damaged.
        DrafterMismatchError: its shapes or its tokenizer are not the target's, or it has an
            embedding or head of its own, which are not trained here.
    """
    folder = resolve_drafter(name, target_name, target.fingerprint)
    config = read_config(folder, target.layer_count)
    check_drafter(config, target.fingerprint, target.hidden_size, target.vocab_size, strict=False)
    if config.tokenizer_fingerprint not in ("", target.fingerprint.tokenizer):
        raise DrafterMismatchError(
            f"--init {name}: its tokenizer differs from the target's, though of the same size"
        )
    if config.own_embedding or config.draft_vocab_size is not None:
        raise DrafterMismatchError(
            f"--init {name}: it has an embedding or a head of its own; only drafters that use the "
            "target's can be trained on"
        )
    drafter = load_drafter(folder, torch.float32, target.device, target.layer_count).drafter
    return InitialDrafter(drafter, Initial(name=folder.name, fingerprint=fingerprint_module(drafter)))
