"""From a user's text to the token ids that a model expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from evospec.errors import UnsupportedModelError


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> tuple[int, ...]:
    """Tokenises `text`, with `chat` as the user's turn in the model's chat template.

    Raises:
        UnsupportedModelError: the model has no chat template.
    """
    return encode_turns(tokenizer, [text], chat=chat)


def encode_turns(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], *, chat: bool) -> tuple[int, ...]:
    """Tokenises a conversation that the user has begun and that the model is to answer.

    Args:
        turns: the user's and the model's, alternating. Without `chat` they are one text.

    Raises:
        UnsupportedModelError: the model has no chat template.
    """
    if not chat:
        return tuple(tokenizer("\n\n".join(turns)).input_ids)
    if tokenizer.chat_template is None:
        raise UnsupportedModelError("the model has no chat template: it continues text only (use --no-chat)")
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    encoded: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return tuple(encoded["input_ids"])
