"""From records to token documents, in batches: a fast tokenizer works on many texts at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from evospec.errors import EvoSpecError, UnsupportedModelError
from evospec.training.corpus import Document
from evospec.training.records import Conversation

_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 512, 1 << 20
_Item = TypeVar("_Item", str, Conversation)


@dataclass(slots=True)
class EncodingCounts:
    """Records that were read, and conversations that gave no document."""

    records: int = 0
    unanswered: int = 0
    long: int = 0


@dataclass(frozen=True, slots=True)
class Encoder:
    """Tokenises for one target.

    Attributes:
        eos_ids: an answer ends with the first of these that the chat template writes.
        longest, shortest: tokens of a document at most, of an answer at least.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    longest: int
    shortest: int
    counts: EncodingCounts = field(default_factory=EncodingCounts)

    def texts(self, texts: Iterable[str]) -> Iterator[Document]:
        """Raw texts, cut in documents of at most `longest` tokens, all of which are learnt.

        Each begins as a prompt of this target does: with the tokenizer's own first token, if any.
        """
        start = self._start()
        room = self.longest - len(start)
        for batch in _batches(texts):
            self.counts.records += len(batch)
            for ids in self._encode(batch):
                for first in range(0, len(ids), room):
                    yield Document(np.array(start + ids[first : first + room], dtype=np.int64), 1)

    def conversations(self, conversations: Iterable[Conversation]) -> Iterator[Document]:
        """Conversations up to the last answer that begins within `longest`, in the chat template.

        Raises:
            UnsupportedModelError: the target has no chat template, or one that renders an
                answer differently from what it continues.
            EvoSpecError: naming the conversation that the template refuses.
        """
        if self.tokenizer.chat_template is None:
            raise UnsupportedModelError("the target has no chat template: it learns from kind text only")
        for batch in _batches(conversations):
            self.counts.records += len(batch)
            waiting: Sequence[Conversation] = batch
            while waiting:
                answered = [part for part in map(Conversation.upto_last_answer, waiting) if part]
                self.counts.unanswered += len(waiting) - len(answered)
                shortened = []
                for conversation, document in zip(answered, self._render(answered), strict=True):
                    if document.answer + self.shortest <= self.longest:
                        yield Document(document.tokens[: self.longest], document.answer)
                    elif earlier := conversation.without_last().upto_last_answer():
                        shortened.append(earlier)
                    else:
                        self.counts.long += 1
                waiting = shortened

    def _render(self, conversations: Sequence[Conversation]) -> list[Document]:
        """Prompt and answer are tokenised apart, as they are in serving."""
        prompts, answers = [], []
        for conversation in conversations:
            prompt = self._apply(conversation.without_last(), ask=True)
            whole = self._apply(conversation, ask=False)
            if not whole.startswith(prompt):
                raise UnsupportedModelError(
                    "the target's chat template renders an answer differently from what it continues: "
                    "conversations can't be learnt as they are; give their prompts (kind prompts)"
                )
            prompts.append(prompt)
            answers.append(whole[len(prompt) :])
        return [
            Document(np.array(prompt + self._upto_end(answer), dtype=np.int64), len(prompt))
            for prompt, answer in zip(self._encode(prompts), self._encode(answers), strict=True)
        ]

    def _apply(self, conversation: Conversation, *, ask: bool) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(conversation.messages), tokenize=False, add_generation_prompt=ask
            )
        except TemplateError as error:
            raise EvoSpecError(
                f"{conversation.where}: the target's chat template refuses the conversation: {error}"
            ) from None
        return str(rendered)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _upto_end(self, answer: list[int]) -> list[int]:
        """Without what the template writes behind the end of the turn: the target stops there."""
        ends = (index for index, token in enumerate(answer) if token in self.eos_ids)
        return answer[: next(ends, len(answer)) + 1]

    def _start(self) -> list[int]:
        first: list[int] = self.tokenizer("").input_ids[:1]
        return first if first == [self.tokenizer.bos_token_id] else []


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Groups of some hundred texts, or fewer long ones."""
    batch: list[_Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item) if isinstance(item, str) else item.characters
        if len(batch) == _TEXTS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
