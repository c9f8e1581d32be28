"""Prompts to token ids, with the target's own tokenizer and chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from services.api_errors import invalid
from services.openai_schema import Message


class PromptEncoder:
    """Tokenises off the event loop, on one thread: fast tokenizers can't be shared by two."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    async def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Raises ApiError (400) when the model has no chat template, or it refuses the messages."""
        if self._tokenizer.chat_template is None:
            raise invalid("This model has no chat template: use /v1/completions.", "messages")
        # Templates know no developer role; it is what newer clients call the system role.
        turns = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text}
            for message in messages
        ]
        try:
            return await self._run(lambda: self._encode_chat(turns))
        except TemplateError as error:
            raise invalid(f"The model's chat template refuses the messages: {error}", "messages") from None

    async def text(self, prompt: str) -> tuple[int, ...]:
        return await self._run(lambda: tuple(self._tokenizer(prompt).input_ids))

    def _encode_chat(self, turns: list[dict[str, str]]) -> tuple[int, ...]:
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        # The template has written the special tokens already.
        return tuple(self._tokenizer(str(text), add_special_tokens=False).input_ids)

    async def _run(self, encode: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, encode)
