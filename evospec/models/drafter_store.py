"""Drafter folders: config.json, model.safetensors, vocabulary.safetensors (core ranks), provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evospec.errors import DrafterMismatchError, ModelNotFoundError
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.fingerprint import TargetFingerprint

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
VOCABULARY_FILE = "vocabulary.safetensors"
SHIPPED = Path(__file__).resolve().parent.parent / "drafters"


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter with what ships beside it.

    `core_ranks` lists token ids by falling frequency in text of the target,
    int64 [ranked]; it may be shorter than the vocabulary.
    """

    drafter: Drafter
    core_ranks: Tensor
    folder: Path


def shipped_drafters() -> dict[str, DrafterConfig]:
    """Drafters that come with EvoSpec: name to config."""
    folders = sorted(path.parent for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    return {folder.name: read_config(folder) for folder in folders}


def resolve_drafter(name: str, target_name: str, fingerprint: TargetFingerprint | None = None) -> Path:
    """Folder of a drafter: a path, a shipped name, or `default` for the target's own.

    Raises:
        ModelNotFoundError: nothing is there; the message lists what is shipped.
    """
    shipped = shipped_drafters()
    if name == "default":
        for shipped_name, config in shipped.items():
            same = fingerprint is not None and config.target_fingerprint == fingerprint.target
            if same or config.target_name == target_name:
                return SHIPPED / shipped_name
        raise ModelNotFoundError(
            f"no drafter ships for target {target_name!r} (there are: {', '.join(shipped) or 'none'}); "
            "train one with `evospec train`, or set model.drafter to null for plain decoding"
        )
    if name in shipped:
        return SHIPPED / name
    folder = Path(name).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return folder
    raise ModelNotFoundError(
        f"no drafter at {name!r}: not a folder with {CONFIG_FILE}, "
        f"nor a shipped one ({', '.join(shipped) or 'none'})"
    )


def read_config(folder: Path) -> DrafterConfig:
    try:
        return DrafterConfig.model_validate_json((folder / CONFIG_FILE).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelNotFoundError(
            f"{folder / CONFIG_FILE} is not a drafter config: {where}: {first['msg']}"
        ) from None


def load_drafter(folder: Path, dtype: torch.dtype, device: torch.device) -> LoadedDrafter:
    """Loads a drafter strictly: every weight present, none unknown, none left unset.

    Raises:
        ModelNotFoundError: missing or damaged files, or weights of another shape.
    """
    config = read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
        vocabulary = load_file(folder / VOCABULARY_FILE)
    except (OSError, SafetensorError) as error:
        raise ModelNotFoundError(f"drafter {folder} cannot be read: {error}") from None
    drafter = Drafter(config)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.fill_(float("nan"))  # a weight that is never loaded must show, not serve
    try:
        drafter.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ModelNotFoundError(f"drafter {folder} does not fit its config: {detail}") from None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in drafter.parameters()):
        raise ModelNotFoundError(f"drafter {folder} holds NaN or infinite weights")
    drafter = drafter.requires_grad_(False).to(dtype=dtype, device=device).eval()
    drafter.rope = drafter.rope.float()
    return LoadedDrafter(drafter, vocabulary["core_ranks"].long(), folder)


def save_drafter(drafter: Drafter, core_ranks: Tensor, folder: Path) -> None:
    """Writes config, weights (bfloat16) and core ranks (int32)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(drafter.config.model_dump_json(indent=2) + "\n")
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in drafter.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    save_file({"core_ranks": core_ranks.to("cpu", torch.int32).contiguous()}, folder / VOCABULARY_FILE)


def check_drafter(
    config: DrafterConfig, target: TargetFingerprint, hidden: int, vocab: int, strict: bool
) -> None:
    """Refuses a drafter that was made for another target.

    Raises:
        DrafterMismatchError: other shapes; with `strict`, also other weights or tokenizer.
    """
    made_for = config.target_name or config.target_fingerprint
    if config.hidden_size != hidden or config.vocab_size != vocab:
        raise DrafterMismatchError(
            f"the drafter was made for {made_for} (hidden {config.hidden_size}, vocabulary "
            f"{config.vocab_size}), the target has hidden {hidden}, vocabulary {vocab}: "
            "choose a drafter of this target"
        )
    if not strict:
        return
    if config.tokenizer_fingerprint != target.tokenizer:
        raise DrafterMismatchError(
            f"the drafter was made for {made_for}, whose tokenizer differs from the target's"
        )
    if config.target_fingerprint != target.target:
        raise DrafterMismatchError(
            f"the drafter was made for {made_for} (fingerprint {config.target_fingerprint}), not for "
            f"this target ({target.target}): train one, or set model.drafter_check to `shape` to use "
            "it all the same"
        )
