"""Generations as OpenAI responses: one JSON object, or server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.generation import GenerationChunk, TokenLogprob
from services import api_errors
from services.api_errors import ApiError
from services.completion import Completion, Tally
from services.logprobs import chat_logprobs, length_of, text_logprobs
from services.openai_schema import GenerationBody
from services.request_ids import name_of_request

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"
# No ends of lines in server-sent events, but clients that use `str.splitlines` (httpx does) think so.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
Json = dict[str, Any]


class Format(Protocol):
    """How one endpoint words its responses."""

    id_prefix: str
    object: str
    chunk_object: str

    def whole(self, text: str) -> Json:
        """The part of a choice that holds its text."""
        ...

    def opening(self) -> list[Json]:
        """What each choice of a stream begins with, before any text."""
        ...

    def delta(self, text: str) -> Json:
        """The same of a piece of a streamed choice."""
        ...

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        """Args:
        offset: characters of the choice before these tokens.
        """
        ...


class ChatFormat:
    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> list[Json]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def delta(self, text: str) -> Json:
        return {"delta": {"content": text} if text else {}}

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        return chat_logprobs(tokens)


class TextFormat:
    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, text: str) -> Json:
        return {"text": text}

    def opening(self) -> list[Json]:
        return []

    def delta(self, text: str) -> Json:
        return {"text": text}

    def logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json:
        return text_logprobs(tokens, offset)


@dataclass(slots=True)
class _Choice:
    """One of the answers to a request, as far as it has come."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, chunk: GenerationChunk) -> None:
        self.texts.append(chunk.text)
        self.token_ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs)
        self.finish_reason = chunk.finish_reason

    def render(self, body: GenerationBody, form: Format) -> Json:
        logprobs = None if body.alternatives is None else form.logprobs(self.logprobs, 0)
        token_ids = self.token_ids if body.return_token_ids else None
        return _choice(self.index, form.whole("".join(self.texts)), logprobs, self.finish_reason, token_ids)


async def render_whole(completion: Completion, body: GenerationBody, form: Format) -> Json:
    """Collects a generation into one response. Raises ApiError when the rest is lost."""
    tally = Tally(len(completion.prompt_ids), completion.choices)
    choices = [_Choice(index) for index in range(completion.choices)]
    async with aclosing(completion.chunks) as chunks:
        async for item in chunks:
            tally.add(item.chunk)
            choices[item.index].add(item.chunk)
    response = {
        **_head(completion, form, form.object),
        "choices": [choice.render(body, form) for choice in choices],
        "usage": tally.usage().model_dump(),
    }
    if body.return_token_ids:
        response["prompt_token_ids"] = list(completion.prompt_ids)
    return response


async def render_stream(completion: Completion, body: GenerationBody, form: Format) -> AsyncIterator[str]:
    """Server-sent events, `[DONE]` last; an error after the start becomes an event."""
    tally = Tally(len(completion.prompt_ids), completion.choices)
    offsets = [0] * completion.choices
    head = _head(completion, form, form.chunk_object)
    try:
        async with aclosing(completion.chunks) as chunks:
            for index in range(completion.choices):
                for part in form.opening():
                    opening = _choice(index, part, None, None)
                    yield _event({**head, "choices": [opening], **_usage(tally, body)})
            async for item in chunks:
                tally.add(item.chunk)
                choice = _piece(item.chunk, item.index, offsets[item.index], body, form)
                offsets[item.index] += length_of(item.chunk.logprobs)
                if choice is not None:
                    yield _event({**head, "choices": [choice], **_usage(tally, body)})
        if body.include_usage:
            yield _event({**head, "choices": [], "usage": tally.usage().model_dump()})
    except ApiError as error:
        yield _event(error.body())
    except Exception:  # the status line is out already: all that is left is to say so in the stream
        logger.exception("%s failed while it was streamed", name_of_request())
        yield _event(api_errors.server_error("The server failed while it answered.").body())
    yield DONE


def _usage(tally: Tally, body: GenerationBody) -> Json:
    """Of a chunk that is not the last. OpenAI: with include_usage it has the field, with null."""
    if body.continuous_usage:
        return {"usage": tally.usage().model_dump()}
    return {"usage": None} if body.include_usage else {}


def _piece(
    chunk: GenerationChunk, index: int, offset: int, body: GenerationBody, form: Format
) -> Json | None:
    """A piece of a streamed choice; None where there is nothing to say."""
    if not (chunk.text or chunk.finish_reason or chunk.logprobs or body.return_token_ids):
        return None
    logprobs = form.logprobs(chunk.logprobs, offset) if chunk.logprobs else None
    token_ids = chunk.token_ids if body.return_token_ids else None
    return _choice(index, form.delta(chunk.text), logprobs, chunk.finish_reason, token_ids)


def _choice(
    index: int,
    content: Json,
    logprobs: Json | None,
    finish_reason: str | None,
    token_ids: Sequence[int] | None = None,
) -> Json:
    """`token_ids` are shown where they were asked for."""
    shown = {} if token_ids is None else {"token_ids": list(token_ids)}
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason, **shown}


def _head(completion: Completion, form: Format, kind: str) -> Json:
    return {
        "id": form.id_prefix + completion.id,
        "object": kind,
        "created": completion.created,
        "model": completion.model,
    }


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)}\n\n"
