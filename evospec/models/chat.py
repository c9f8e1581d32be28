"""From a user's text to the token ids that a model expects."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from evospec.errors import UnsupportedModelError


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> tuple[int, ...]:
    """Tokenises `text`, with `chat` as the user's turn in the model's chat template.

    Raises:
        UnsupportedModelError: the model has no chat template.
    """
    if not chat:
        return tuple(tokenizer(text).input_ids)
    if tokenizer.chat_template is None:
        raise UnsupportedModelError("the model has no chat template: it continues text only (use --no-chat)")
    encoded: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return tuple(encoded["input_ids"])
