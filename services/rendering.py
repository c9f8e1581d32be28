"""Generations as OpenAI responses: one JSON object, or server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from services import api_errors
from services.api_errors import ApiError
from services.completion import Completion, Tally
from services.openai_schema import GenerationBody

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

    def choice(self, text: str, finish_reason: str) -> Json:
        """The whole answer."""
        ...

    def opening(self) -> list[Json]:
        """What a stream begins with, before any text."""
        ...

    def delta(self, text: str, finish_reason: str | None) -> Json:
        """A piece of a streamed answer."""
        ...


class ChatFormat:
    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, text: str, finish_reason: str) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}

    def opening(self) -> list[Json]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]

    def delta(self, text: str, finish_reason: str | None) -> Json:
        delta = {"content": text} if text else {}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class TextFormat:
    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def choice(self, text: str, finish_reason: str) -> Json:
        return self.delta(text, finish_reason)

    def opening(self) -> list[Json]:
        return []

    def delta(self, text: str, finish_reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


async def render_whole(completion: Completion, body: GenerationBody, form: Format) -> Json:
    """Collects a generation into one response. Raises ApiError when the rest is lost."""
    tally = Tally(len(completion.prompt_ids))
    texts: list[str] = []
    token_ids: list[int] = []
    finish_reason = ""
    async with aclosing(completion.chunks) as chunks:
        async for chunk in chunks:
            tally.add(chunk)
            texts.append(chunk.text)
            token_ids.extend(chunk.token_ids)
            finish_reason = chunk.finish_reason or ""
    choice = form.choice("".join(texts), finish_reason)
    response = {
        **_head(completion, form, form.object),
        "choices": [choice],
        "usage": tally.usage().model_dump(),
    }
    if body.return_token_ids:
        choice["token_ids"] = token_ids
        response["prompt_token_ids"] = list(completion.prompt_ids)
    return response


async def render_stream(completion: Completion, body: GenerationBody, form: Format) -> AsyncIterator[str]:
    """Server-sent events, `[DONE]` last; an error after the start becomes an event."""
    head = _head(completion, form, form.chunk_object)
    tally = Tally(len(completion.prompt_ids))
    # OpenAI: with include_usage every chunk has the field, null but in the last one.
    blank: Json = {"usage": None} if body.include_usage else {}
    for choice in form.opening():
        yield _event({**head, "choices": [choice], **blank})
    try:
        async with aclosing(completion.chunks) as chunks:
            async for chunk in chunks:
                tally.add(chunk)
                if not (chunk.text or chunk.finish_reason or body.return_token_ids):
                    continue
                choice = form.delta(chunk.text, chunk.finish_reason)
                if body.return_token_ids:
                    choice["token_ids"] = list(chunk.token_ids)
                yield _event({**head, "choices": [choice], **blank})
        if body.include_usage:
            yield _event({**head, "choices": [], "usage": tally.usage().model_dump()})
    except ApiError as error:
        yield _event(error.body())
    except Exception:  # the status line is out already: all that is left is to say so in the stream
        logger.exception("a stream failed")
        yield _event(api_errors.server_error("The server failed while it answered.").body())
    yield DONE


def _head(completion: Completion, form: Format, kind: str) -> Json:
    return {
        "id": form.id_prefix + completion.id,
        "object": kind,
        "created": completion.created,
        "model": completion.model,
    }


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)}\n\n"
