"""Several models behind one address: each has an application of its own, and requests name the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPMethod, HTTPStatus
from typing import Any

from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import api_errors
from services.http_api import LARGE_BODY, MAX_BODY_BYTES

MODELS = "/v1/models"
HEALTH = "/health"
OK = HTTPStatus.OK


class ModelSwitch:
    """ASGI application over one application per model, by name.

    A request names its model in its body, its path, or, for what is not of OpenAI's API, as `?model=NAME`.
    Whatever names none goes to the first one's application. Bodies are read here: keys must have been
    checked before.
    """

    def __init__(self, apps: Mapping[str, ASGIApp]) -> None:
        self._apps = dict(apps)
        self._first = next(iter(self._apps.values()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._first(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        asked = QueryParams(scope["query_string"]).get("model")
        if asked is not None:
            await self._apps.get(asked, self._unknown(asked))(scope, receive, send)
        elif scope["method"] == HTTPMethod.POST:
            await self._by_body(scope, receive, send)
        elif path == MODELS:
            await self._list(scope, receive, send)
        elif path == HEALTH:
            await self._ask_all(scope, receive, send)
        else:
            name = path.removeprefix(f"{MODELS}/")
            await self._apps.get(name, self._first)(scope, receive, send)

    async def _by_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if len(body.content) < LARGE_BODY:
            name = _model(body.content)
        else:
            name = await asyncio.to_thread(_model, body.content)
        if name is None or name in self._apps:
            await self._apps.get(name or "", self._first)(scope, body.replay, send)
            return
        answer = await _collect(self._first, scope, body.replay)
        if answer.status == HTTPStatus.NOT_FOUND:  # it knows of itself only
            await self._unknown(name)(scope, receive, send)
        else:
            await answer.send(send)

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        cards: list[Any] = []
        for app in self._apps.values():
            answer = await _collect(app, scope, receive)
            if answer.status != OK:
                await answer.send(send)
                return
            cards += json.loads(answer.content)["data"]
        await JSONResponse({"object": "list", "data": cards})(scope, receive, send)

    async def _ask_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The first answer that is not 200; else the last."""
        for app in self._apps.values():
            answer = await _collect(app, scope, receive)
            if answer.status != OK:
                break
        await answer.send(send)

    def _unknown(self, name: str) -> JSONResponse:
        error = api_errors.model_not_found(name, "', '".join(self._apps))
        return JSONResponse(error.body(), error.status)


@dataclass(slots=True)
class _Body:
    """A request's body as far as it was read, to be read again."""

    content: bytes
    more: bool
    receive: Receive
    replayed: bool = False

    async def replay(self) -> Message:
        if self.replayed:
            return await self.receive()
        self.replayed = True
        return {"type": "http.request", "body": self.content, "more_body": self.more}


@dataclass(slots=True)
class _Answer:
    """A small answer, held back."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    async def send(self, send: Send) -> None:
        for message in self.messages:
            await send(message)


async def _read(receive: Receive) -> _Body:
    """The whole body; of one that is too large only a part: the application refuses it."""
    parts: list[bytes] = []
    size = 0
    while size <= MAX_BODY_BYTES:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False):
            return _Body(b"".join(parts), False, receive)
    return _Body(b"".join(parts), True, receive)


async def _collect(app: ASGIApp, scope: Scope, receive: Receive) -> _Answer:
    answer = _Answer()

    async def keep(message: Message) -> None:
        answer.messages.append(message)

    await app(dict(scope), receive, keep)
    return answer


def _model(content: bytes) -> str | None:
    """None where there is none to be read: the application says what is wrong with it."""
    try:
        name = json.loads(content)["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None
