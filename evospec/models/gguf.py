"""GGUF files to Hugging Face folders: dequantised once, so that every later load is plain and fast."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.quantization_config import GgufConfig

from evospec.errors import EvoSpecError, ModelNotFoundError, UnsupportedModelError
from evospec.models.cache import build_once, cache_root, require_space
from evospec.models.progress import Progress

_MAGIC = b"GGUF"
_READER_PACKAGES = ("gguf", "accelerate")
# bfloat16 bytes per byte of the most tightly quantised files in use (about 2 bits a weight).
_LARGEST_EXPANSION = 8


def cached_conversion(gguf: Path, progress: Progress) -> Path:
    """Folder with the dequantised weights, config and tokenizer of a GGUF file, cached by its content.

    Raises:
        ModelNotFoundError: the file can't be read or is no GGUF.
        UnsupportedModelError: transformers can't read this architecture from GGUF.
        EvoSpecError: a package that reads GGUF is missing, or the disk is full.
    """
    digest = _digest(gguf, progress)
    folder = cache_root() / "gguf" / f"{gguf.stem}-{digest[:16]}"

    def build(into: Path) -> None:
        require_space(into, gguf.stat().st_size * _LARGEST_EXPANSION, f"dequantising {gguf.name}")
        convert(gguf, into, progress)

    return build_once(folder, build, progress)


def convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Writes config, bfloat16 safetensors, tokenizer and chat template of `gguf` into `folder`.

    Raises:
        UnsupportedModelError: transformers can't read this architecture from GGUF.
        EvoSpecError: a package that reads GGUF is missing, or the weights can't be written.
    """
    require_reader()
    # transformers' bars go straight to stderr, whatever its log level, and would break ours.
    with (
        progress.step(f"converting {gguf.name} to safetensors"),
        redirect_stderr(io.StringIO()),
        _parsed_once(),
    ):
        try:
            model = _read_model(gguf)
            tokenizer = _read_tokenizer(gguf, model)
        except Exception as error:  # damaged files break the parsers in every way, bare Exception included
            reason = " ".join(str(error).split())[:300]
            raise UnsupportedModelError(
                f"transformers {transformers.__version__} cannot read {gguf}: {reason}"
            ) from error
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:
            raise EvoSpecError(f"cannot write the weights of {gguf.name} to {folder}: {error}") from error
        tokenizer.save_pretrained(folder)


def require_reader() -> None:
    """Raises EvoSpecError unless the packages are there with which transformers reads GGUF."""
    missing = [name for name in _READER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EvoSpecError(f"GGUF files need {' and '.join(missing)}: run `pip install {' '.join(missing)}`")


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Keeps what transformers has the gguf package do again and again.

    It parses the whole file, vocabulary included, for each of config, weights and tokenizer, and
    builds the table of tensor names for each module of the model: 90 % of a conversion. Both are
    functions of their arguments, and only read.
    """
    package = importlib.import_module("gguf")
    plain = {name: getattr(package, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in plain.items():
        setattr(package, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(package, name, function)


def _digest(gguf: Path, progress: Progress) -> str:
    try:
        with gguf.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ModelNotFoundError(f"{gguf} is not a GGUF file")
            file.seek(0)
            with progress.step(f"hashing {gguf.name}"):
                return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelNotFoundError(f"cannot read {gguf}: {error.strerror}") from error


def _read_model(gguf: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        config=config,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # A model read from GGUF keeps its quantiser and refuses to be saved. A second
    # one without it takes over the tensors; nothing is copied.
    with torch.device("meta"):
        plain: PreTrainedModel = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain


def _read_tokenizer(gguf: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Some transformers releases guess these from the vocabulary and guess wrong
    # (SmolLM2's end of sequence becomes <|im_start|>); the config has the file's own ids.
    for role in ("bos", "eos", "pad", "unk"):
        token_id = model.config.to_dict().get(f"{role}_token_id")
        if isinstance(token_id, int):
            tokenizer.add_special_tokens({f"{role}_token": tokenizer.convert_ids_to_tokens(token_id)})
    tokenizer.clean_up_tokenization_spaces = False  # text must be exactly what the tokens say
    return tokenizer
