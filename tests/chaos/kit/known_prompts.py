"""Prompts whose greedy continuation is known, from transformers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_tokenizer


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """`expected` are the token ids that greedy decoding must yield, whatever else happens."""

    text: str
    prompt_ids: tuple[int, ...]
    expected: tuple[int, ...]


def known_prompts(target: Path, count: int, tokens: int) -> tuple[KnownPrompt, ...]:
    """`count` different prompts with the `tokens` tokens that transformers generates for each.

    Args:
        target: folder of a tiny target (see `tests.tiny`).
    """
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    tokenizer = tiny_tokenizer()
    prompts = []
    for number in range(count):
        text = f"{number} prompts, each its own: {chr(97 + number % 26) * (number % 7 + 1)}"
        ids = torch.tensor([tokenizer(text).input_ids])  # [1, prompt]
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        prompts.append(KnownPrompt(text, tuple(ids[0].tolist()), tuple(found[0, ids.shape[1] :].tolist())))
    return tuple(prompts)
