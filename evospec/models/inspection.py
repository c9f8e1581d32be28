"""What a target and a drafter are, without loading their weights: checks before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from evospec.config import ModelConfig
from evospec.errors import ModelNotFoundError, UnsupportedModelError
from evospec.models.drafter_store import check_drafter, read_config, resolve_drafter
from evospec.models.fingerprint import TargetFingerprint, fingerprint_parts
from evospec.models.loading import load_model, load_tokenizer, resolve_target


@dataclass(frozen=True, slots=True)
class TargetCard:
    """Where a target lies, and what a drafter or an index must fit."""

    folder: Path
    fingerprint: TargetFingerprint
    hidden_size: int
    vocab_size: int
    layer_count: int


def inspect_target(name: str) -> TargetCard:
    """Describes the target that `name` resolves to, from a few numbers of each stored weight.

    A checkpoint laid out otherwise than the model's modules is loaded instead.

    Raises:
        ModelNotFoundError: there is none, or its files can't be read.
        UnsupportedModelError: it is not a causal LM.
    """
    folder = resolve_target(name)
    tokenizer = load_tokenizer(name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"the model in {folder} is no causal LM: {error}") from None
    parameters = _stored_parameters(folder, {name for name, _ in model.named_parameters()})
    if parameters is None:
        parameters = dict(load_model(folder, torch.bfloat16, torch.device("cpu")).named_parameters())
    fingerprint = fingerprint_parts(config.to_dict(), parameters.items(), tokenizer)
    return TargetCard(folder, fingerprint, config.hidden_size, config.vocab_size, config.num_hidden_layers)


def inspect_drafter(settings: ModelConfig, target: TargetCard) -> Path | None:
    """Folder of the drafter that a config names, checked against its target; None decodes plainly.

    Raises:
        ModelNotFoundError: there is none.
        DrafterMismatchError: it was made for another target.
    """
    if settings.drafter is None:
        return None
    folder = resolve_drafter(settings.drafter, settings.target, target.fingerprint)
    check_drafter(
        read_config(folder, target.layer_count),
        target.fingerprint,
        target.hidden_size,
        target.vocab_size,
        strict=settings.drafter_check == "strict",
    )
    return folder


def _stored_parameters(folder: Path, names: set[str]) -> dict[str, Tensor] | None:
    """The named weights as memory-mapped views of the checkpoint; None when it lacks one."""
    found: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in names.intersection(tensors.keys()):
                    found[name] = tensors.get_tensor(name)
    except SafetensorError as error:
        raise ModelNotFoundError(f"the weights in {folder} cannot be read: {error}") from None
    return found if found.keys() == names else None
