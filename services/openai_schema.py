"""The part of OpenAI's HTTP API that is served: requests, checked, and responses.

Neutral values of parameters that are not supported (echo=false, logit_bias={}, …) are
accepted, because clients send them by default; anything else is refused by name.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from evospec.engine.request import SamplingParams
from evospec.engine.token_scores import MOST_ALTERNATIVES
from services.api_errors import ApiError, invalid

# Parameters of OpenAI's API that are not served, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "web_search_options": (),
    "verbosity": (),
}
_INT64 = 1 << 63
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # or half of a pair
MOST_CHOICES = 128  # OpenAI's
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's

StopString = Annotated[str, StringConstraints(min_length=1)]
Model = TypeVar("Model", bound="Body")


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = Field(
        False, description="Extension, vLLM's. With include_usage, each chunk has the usage so far."
    )


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class GenerationBody(Body):
    """What both endpoints share. `top_k`, `ignore_eos` and `return_token_ids` are vLLM's extensions, `trace`
    is ours."""

    model: str = Field(description="The model's name, as /v1/models has it.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Choices to generate.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="Extension. 0 and -1 are off.")
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    ignore_eos: bool = Field(False, description="Extension. Go on past the end of the text.")
    return_token_ids: bool = Field(False, description="Extension. Answer with token ids as well.")
    trace: bool = Field(
        True, description="Extension. false: nothing is learned from this request, or kept of it."
    )

    @model_validator(mode="after")
    def _options_need_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return options is not None and options.include_usage and options.continuous_usage_stats

    def token_limit(self, room: int) -> int:
        """Tokens to generate at most, where `room` are left in the context."""
        return min(self.max_tokens, room) if self.max_tokens is not None else room

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def alternatives(self) -> int | None:
        """Best tokens to show with each log-probability; None: none are wanted at all."""
        return None

    def sampling(self, room: int, choice: int = 0) -> SamplingParams:
        """Of one of the choices: each has a seed of its own, the first one that of the request."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            seed=secrets.randbits(63) if self.seed is None else _wrapped(self.seed + choice),
            max_tokens=self.token_limit(room),
            ignore_eos=self.ignore_eos,
        )


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        return self

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def token_limit(self, room: int) -> int:
        limits = (self.max_completion_tokens, self.max_tokens, room)
        return min(limit for limit in limits if limit is not None)


class CompletionBody(GenerationBody):
    """POST /v1/completions; a prompt is text or token ids."""

    prompt: str | list[int]
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def token_limit(self, room: int) -> int:
        return min(self.max_tokens or _DEFAULT_COMPLETION_TOKENS, room)


def parse_body(model: type[Model], raw: bytes) -> Model:
    """Raises ApiError (400), naming the parameter, on anything that can't be served as asked."""
    try:
        fields = json.loads(raw)
        if _LONE_SURROGATE.search(raw):
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid("The body has a string that is not valid Unicode.", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        raise invalid(f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid("The body must be a JSON object.", code="invalid_json")
    for name, neutral in _NEUTRAL.items():
        value = fields.pop(name, None)
        if value is not None and not _is_one_of(value, neutral):
            raise invalid(
                f"'{name}': {_shown(value)} is not supported by this server.", name, "unsupported_parameter"
            )
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explain(error) from None


def _wrapped(seed: int) -> int:
    """As a signed 64-bit integer."""
    return (seed + _INT64) % (2 * _INT64) - _INT64


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    # True == 1 in Python, not in JSON.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


def _explain(error: ValidationError) -> ApiError:
    # Of a union's errors, the deepest is about the variant that was meant.
    first = max(error.errors(), key=lambda item: len(item["loc"]))
    path = [str(part) for part in first["loc"] if not _is_variant(part)]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if param is None:
        return invalid(f"{message}.", code="invalid_value")
    return invalid(f"Invalid '{param}': {message}, got {_shown(first['input'])}.", param, "invalid_value")


def _is_variant(part: int | str) -> bool:
    """Whether a part of an error's path names a type of a union, which the sender never wrote."""
    return isinstance(part, str) and (part in {"str", "constrained-str", "int"} or "[" in part)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


class EvoSpecUsage(Body):
    """How a request was decoded: an extension of OpenAI's `usage`."""

    cycles: int
    drafted: int
    accepted: int
    adapter_version: int
    vocabulary_epoch: int


class Usage(Body):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    evospec: EvoSpecUsage


def model_list(model: str, created: int, max_length: int) -> dict[str, Any]:
    """GET /v1/models; `max_model_len` is vLLM's extension."""
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "evospec",
        "max_model_len": max_length,
    }
    return {"object": "list", "data": [card]}
