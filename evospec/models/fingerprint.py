"""Identity of a target: which weights and which vocabulary a drafter or an adapter belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Only fields that every supported transformers release writes the same way.
_CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
_SAMPLES_PER_TENSOR = 64
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class TargetFingerprint:
    """Short hashes (16 hexadecimal digits) of a target's weights and of its tokenizer."""

    target: str
    tokenizer: str


def fingerprint_target(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TargetFingerprint:
    """Fingerprints a loaded target.

    The same checkpoint gives the same fingerprint whether it was loaded in float32
    or bfloat16, on the CPU or on a GPU, in each supported release of transformers.
    """
    return fingerprint_parts(model.config.to_dict(), model.named_parameters(), tokenizer)


def fingerprint_parts(
    settings: Mapping[str, object],
    parameters: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
) -> TargetFingerprint:
    """As `fingerprint_target`, from a model's config, named parameters and tokenizer."""
    digest = hashlib.sha256(_canonical({name: settings.get(name) for name in _CONFIG_FIELDS}))
    digest.update(_hash_parameters(parameters).encode())
    return TargetFingerprint(target=digest.hexdigest()[:_DIGITS], tokenizer=_hash_tokenizer(tokenizer))


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    # Which tokens are special, and which one ends a text, is left out: of one GGUF file, releases of
    # transformers make different things of it. What an id stands for, they agree on.
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(_canonical(vocabulary)).hexdigest()[:_DIGITS]


def _sample(parameter: Tensor) -> Tensor:
    """Values at even distances from the first to the last element, bfloat16 [<= samples].

    Every dtype a checkpoint is loaded in rounds to the same bfloat16 values.
    """
    flat = parameter.detach().reshape(-1)
    count = min(_SAMPLES_PER_TENSOR, flat.numel())
    # Integer steps of numel // count would fall on one column of a power-of-two matrix.
    index = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
    return flat[index].to(torch.bfloat16)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def fingerprint_module(module: nn.Module) -> str:
    """Short hash (16 hexadecimal digits) of any module's weights, independent of dtype and device."""
    return _hash_parameters(module.named_parameters())


def _hash_parameters(parameters: Iterable[tuple[str, Tensor]]) -> str:
    ordered = sorted(parameters, key=lambda item: item[0])
    digest = hashlib.sha256(_canonical([[name, list(parameter.shape)] for name, parameter in ordered]))
    samples = torch.cat([_sample(parameter) for _, parameter in ordered]).cpu()
    digest.update(samples.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]
