"""Tiny random models, made on the spot: a target with tokenizer, and a drafter that fits it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evospec.models.attention import ATTENTION_NAME, register_attention
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.drafter_store import save_drafter
from evospec.models.target import Target, default_tap_layers

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@dataclass(frozen=True, slots=True)
class TinyFolders:
    target: Path
    drafter: Path


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: 256 bytes and four special tokens; any text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    wrapped.chat_template = TEMPLATE
    return wrapped


def tiny_model(*, seed: int = 0, vocab: int = 260, layers: int = 4, positions: int = 512) -> LlamaForCausalLM:
    """A random Llama whose logits are spread enough that float32 rounding never flips a choice."""
    register_attention()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=256,
        bos_token_id=None,
        attn_implementation=ATTENTION_NAME,
    )
    return LlamaForCausalLM(config).eval()


def tiny_target(**settings: int) -> Target:
    return Target(tiny_model(**settings), tiny_tokenizer())


def tiny_drafter(target: Target, *, seed: int = 1) -> Drafter:
    torch.manual_seed(seed)
    config = DrafterConfig(
        hidden_size=target.hidden_size,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=target.vocab_size,
        tap_layers=default_tap_layers(target.layer_count),
        max_positions=target.max_length,
        target_fingerprint=target.fingerprint.target,
        tokenizer_fingerprint=target.fingerprint.tokenizer,
        target_name="tiny",
    )
    return Drafter(config).requires_grad_(False).eval()


def tiny_folders(root: Path, **settings: int) -> TinyFolders:
    """Saves target and drafter as users have them: folders to name in a config."""
    target = tiny_target(**settings)
    target.model.save_pretrained(root / "target")
    target.tokenizer.save_pretrained(root / "target")
    save_drafter(tiny_drafter(target), torch.arange(target.vocab_size), root / "drafter")
    return TinyFolders(root / "target", root / "drafter")
