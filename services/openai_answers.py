"""What the endpoints answer, as types: the OpenAPI document has them, and tests hold answers against it.

The answers themselves are put together as plain dictionaries, which takes a fraction of the time.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.openai_schema import Usage

FinishReason = Literal["stop", "length"]
ChatId = Field(pattern="^chatcmpl-")
TextId = Field(pattern="^cmpl-")


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Any answer other than 200."""

    error: ErrorDetail


class Health(Answer):
    status: Literal["ok"]


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(description="Extension. Tokens of prompt and answer together.")


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class LogprobEntry(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(LogprobEntry):
    top_logprobs: list[LogprobEntry]


class ChatLogprobs(Answer):
    content: list[ContentLogprob]
    refusal: None


class TextLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(Answer):
    index: int
    finish_reason: FinishReason
    token_ids: list[int] | None = Field(None, description="Extension, with return_token_ids.")


class ChatChoice(Choice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None


class TextChoice(Choice):
    text: str
    logprobs: TextLogprobs | None


class Generated(Answer):
    created: int
    model: str
    usage: Usage
    prompt_token_ids: list[int] | None = Field(None, description="Extension, with return_token_ids.")


class ChatCompletion(Generated):
    id: str = ChatId
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(Generated):
    id: str = TextId
    object: Literal["text_completion"]
    choices: list[TextChoice]


class ClusterState(Answer):
    """What the parts of the cluster report of themselves; null where there is no such part, or no answer."""

    replicas: list[dict[str, Any]] | None
    aligner: dict[str, Any] | None
    rollout: dict[str, Any] | None
