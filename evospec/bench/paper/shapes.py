"""Targets that are timed with random weights: only their sizes are true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from evospec.bench.arms import ArmError
from evospec.bench.ledger import ModelMemory
from evospec.bench.models import BenchModels
from evospec.bench.update_memory import Shape, random_drafter
from evospec.models.attention import ATTENTION_NAME, register_attention
from evospec.models.drafter_store import LoadedDrafter
from evospec.models.target import Target

_NO_END: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _llama_3_8b() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        **_NO_END,
    )


def _qwen_7b() -> PreTrainedConfig:
    return Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
        **_NO_END,
    )


def _gemma_3_27b() -> PreTrainedConfig:
    return Gemma3TextConfig(
        vocab_size=262_208,
        hidden_size=5376,
        intermediate_size=21_504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
        sliding_window=1024,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        **_NO_END,
    )


def _tiny() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=40_000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **_NO_END,
    )


SHAPES: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama-3-8b": _llama_3_8b,
    "qwen2.5-7b": _qwen_7b,
    "gemma-3-27b": _gemma_3_27b,
    "tiny": _tiny,
}


def check_shapes(names: tuple[str, ...]) -> None:
    """Raises ArmError naming the shapes that there are."""
    for name in names:
        if name not in SHAPES:
            raise ArmError(f"unknown shapes {name!r}: choose some of {', '.join(SHAPES)}")


def random_models(name: str, dtype: torch.dtype, device: torch.device) -> BenchModels:
    """Target and drafter of these shapes, made on the device; nothing is downloaded."""
    config = SHAPES[name]()
    register_attention()
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=ATTENTION_NAME, dtype=dtype
        )
    target = Target(model.requires_grad_(False), _tokenizer())
    drafter = random_drafter(_drafter_shape(target), config.max_position_embeddings, device).to(dtype)
    drafter.share_embedding(target.tables)
    target.tap(drafter.config.tap_layers)
    loaded = LoadedDrafter(drafter, torch.arange(target.vocab_size), Path())
    return BenchModels(target, loaded, ModelMemory.of(target, drafter))


def _drafter_shape(target: Target) -> Shape:
    config = target.model.config
    return Shape(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads,
        vocab=config.vocab_size,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """One word for everything: prompts here are token ids."""
    words = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)
