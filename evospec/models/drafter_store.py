"""Drafter folders. Ours hold config.json, model.safetensors, vocabulary.safetensors (core ranks) and
provenance; published EAGLE-3 checkpoints are read as they are (`evospec.models.layouts`)."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evospec.errors import DrafterMismatchError, ModelNotFoundError
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.fingerprint import TargetFingerprint
from evospec.models.layouts.importer import load_published, published_config
from evospec.models.layouts.settings import detect_layout
from evospec.models.loading import download_from_hub, is_hub_id

_log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
VOCABULARY_FILE = "vocabulary.safetensors"
SHIPPED = Path(__file__).resolve().parent.parent / "drafters"


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter with what ships beside it.

    `core_ranks` lists token ids by falling frequency in text of the target,
    int64 [ranked]; it may be shorter than the vocabulary, and published drafters have none.
    """

    drafter: Drafter
    core_ranks: Tensor
    folder: Path


def shipped_drafters() -> dict[str, DrafterConfig]:
    """Drafters that come with EvoSpec: name to config."""
    folders = sorted(path.parent for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))
    return {folder.name: read_config(folder) for folder in folders}


def resolve_drafter(name: str, target_name: str, fingerprint: TargetFingerprint | None = None) -> Path:
    """Folder of a drafter: `default` for the target's own, a shipped name, a path, or a Hub id.

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
    tried = f"not a folder with {CONFIG_FILE}, nor a shipped one ({', '.join(shipped) or 'none'})"
    if is_hub_id(name) and not folder.exists():
        try:
            return download_from_hub(name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"no drafter at {name!r}: {tried}; {error}") from error
    raise ModelNotFoundError(f"no drafter at {name!r}: {tried}")


def read_config(folder: Path, target_layers: int | None = None) -> DrafterConfig:
    """Config of the drafter in a folder, whatever its layout.

    Args:
        target_layers: decoder layers of the target; published drafters that name no tap
            layers mean those that follow from it.

    Raises:
        ModelNotFoundError: it is none, or lacks tensors.
        UnsupportedModelError: it is a published variant that is not supported.
    """
    raw = _read_json(folder / CONFIG_FILE)
    layout = detect_layout(raw)
    if layout is not None:
        return published_config(folder, raw, layout, target_layers)
    try:
        return DrafterConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelNotFoundError(
            f"{folder / CONFIG_FILE} is not a drafter config: {where}: {first['msg']}"
        ) from None


def load_drafter(
    folder: Path, dtype: torch.dtype, device: torch.device, target_layers: int | None = None
) -> LoadedDrafter:
    """Loads a drafter strictly: every weight present, none unknown, none left unset.

    Args:
        target_layers: as in `read_config`.

    Raises:
        ModelNotFoundError: missing or damaged files, or weights of another shape.
        UnsupportedModelError: a published variant that is not supported.
    """
    config = read_config(folder, target_layers)
    if detect_layout(_read_json(folder / CONFIG_FILE)) is None:
        weights, core_ranks = _load_own(folder)
    else:
        weights, core_ranks = load_published(folder, config), torch.zeros(0, dtype=torch.int64)
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
    return LoadedDrafter(drafter, core_ranks, folder)


def save_drafter(drafter: Drafter, core_ranks: Tensor, folder: Path) -> None:
    """Writes config, weights (bfloat16) and core ranks (int32)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(drafter.config.model_dump_json(indent=2) + "\n")
    weights = {
        name: tensor.detach()
        .to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        .contiguous()
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
            Published drafters carry no fingerprints: shapes must do, which is logged.
    """
    made_for = config.target_name or config.target_fingerprint or "a target that it does not name"
    if config.target_hidden != hidden or config.vocab_size != vocab:
        raise DrafterMismatchError(
            f"the drafter was made for {made_for} (hidden {config.target_hidden}, vocabulary "
            f"{config.vocab_size}), the target has hidden {hidden}, vocabulary {vocab}: "
            "choose a drafter of this target"
        )
    if config.origin != "evospec":
        _log.warning(
            "the drafter is a published checkpoint (%s layout), made for %s: its shapes fit this target, "
            "nothing else can be checked",
            config.origin,
            made_for,
        )
        return
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelNotFoundError(f"{path} is not a drafter config: {error}") from None
    if not isinstance(raw, dict):
        raise ModelNotFoundError(f"{path} is not a drafter config: no JSON object")
    return raw


def _load_own(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and core ranks of a folder that `save_drafter` wrote."""
    try:
        weights = load_file(folder / WEIGHTS_FILE)
        ranks = load_file(folder / VOCABULARY_FILE)["core_ranks"]
    except (OSError, SafetensorError) as error:
        raise ModelNotFoundError(f"drafter {folder} cannot be read: {error}") from None
    return weights, ranks.long()
