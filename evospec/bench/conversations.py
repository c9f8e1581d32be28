"""Requests for long streams: when a topic's prompts are used up, their conversations go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from evospec.bench.batches import EncodedPrompt
from evospec.models.chat import encode_turns

FOLLOW_UPS = (
    "Explain the most important point of this in more detail.",
    "Give a concrete example, step by step.",
    "What are exceptions, risks or objections?",
    "Explain it again to someone without any background.",
    "What follows from this in practice?",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's prompt; `key` says which conversation it belongs to, `turn` how often that had gone on."""

    key: str
    turn: int
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class _Conversation:
    key: str
    text: str
    opening: tuple[int, ...]
    answer: str = ""
    turns: int = 0


@dataclass(slots=True)
class Conversations:
    """One topic's. Prompts come in their order; after the last, the first one's conversation goes on
    with what was answered to it and a follow-up, and so forth.

    Attributes:
        room: tokens that a prompt may have; a conversation that has grown longer begins again from its
            first prompt and the follow-up.
    """

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[EncodedPrompt]
    room: int
    chat: bool
    _all: dict[str, _Conversation] = field(default_factory=dict)
    _next: int = 0

    def __post_init__(self) -> None:
        for number, one in enumerate(self.prompts):
            key = f"{number}:{one.prompt.id}"
            self._all[key] = _Conversation(key, one.prompt.text, one.token_ids)

    def ask(self) -> Asked:
        """The next request of the topic."""
        conversation = list(self._all.values())[self._next % len(self._all)]
        self._next += 1
        turn = conversation.turns
        conversation.turns += 1
        return Asked(conversation.key, turn, self._encode(conversation, turn))

    def answered(self, key: str, token_ids: Sequence[int]) -> None:
        text = str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        self._all[key].answer = text.strip()

    def _encode(self, conversation: _Conversation, turn: int) -> tuple[int, ...]:
        if not turn:
            return conversation.opening
        follow_up = FOLLOW_UPS[(turn - 1) % len(FOLLOW_UPS)]
        whole = [conversation.text, conversation.answer, follow_up]
        for turns in (whole, [f"{conversation.text}\n\n{follow_up}"]):
            token_ids = encode_turns(self.tokenizer, turns, chat=self.chat)
            if len(token_ids) <= self.room:
                return token_ids
        return conversation.opening
