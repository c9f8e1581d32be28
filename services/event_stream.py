"""What an OpenAI-compatible endpoint answers: server-sent events, and errors."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from evospec.errors import EvoSpecError

MAX_REASON = 200  # characters of an error that is not OpenAI's
_FIELD = b"data:"
_DONE = b"[DONE]"


class RequestFailedError(EvoSpecError):
    """The endpoint did not answer a request, or not completely."""


async def read_events(content: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    """The JSON of each event, up to `[DONE]`.

    Args:
        content: the body in pieces of any size. Only line feeds end lines here: JSON may hold other
            characters that `str.splitlines` takes for ends.

    Raises:
        RequestFailedError: the body ends before, is not JSON, or holds an error.
    """
    rest = b""
    async for piece in content:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(_FIELD):
                continue
            data = line.removeprefix(_FIELD).strip()
            if data == _DONE:
                return
            yield _parse(data)
    raise RequestFailedError("the connection was closed in the middle of the answer")


def error_reason(body: str) -> str:
    """The message of an OpenAI-shaped error; whatever is there otherwise."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.split())[:MAX_REASON]


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise RequestFailedError("the stream holds an event that is not JSON") from None
    if not isinstance(event, dict):
        raise RequestFailedError("the stream holds an event that is not a JSON object")
    if "error" in event:
        raise RequestFailedError(error_reason(json.dumps(event)))
    return event
