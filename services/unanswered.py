"""Requests that Ray Serve's HTTP proxy leaves without an answer."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import api_errors
from services.completion import RETRY_AFTER_S


class UnansweredRequests:
    """ASGI middleware of the proxy: what is for now tells clients when to ask again.

    When the gateway that had a request dies, the proxy ends it without a word, of which uvicorn makes
    a bare 500. Nothing was shown to the client by then, so it gets 503 with Retry-After, in OpenAI's
    words, which clients send again. The proxy's own 503 gets the header too. A proxy that has just started
    knows no routes yet, and says in plain text that there is no such path; the gateway, which has all
    paths, answers in JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = False
        unrouted = False

        async def pass_on(message: Message) -> None:
            nonlocal answered, unrouted
            if message["type"] == "http.response.start":
                unrouted = _knows_no_routes(message)
                answered = not unrouted
                if message["status"] == 503:
                    MutableHeaders(scope=message).setdefault("Retry-After", str(RETRY_AFTER_S))
            if not unrouted:
                await send(message)

        await self._app(scope, receive, pass_on)
        if not answered:
            error = api_errors.unavailable(RETRY_AFTER_S)
            response = JSONResponse(error.body(), status_code=error.status, headers=dict(error.headers))
            await response(scope, receive, send)


def _knows_no_routes(start: Message) -> bool:
    kind = MutableHeaders(scope=start).get("content-type", "")
    return start["status"] == 404 and kind.startswith("text/plain")


def middlewares() -> list[Middleware]:
    """What the proxy puts around its application; it finds this by its import path."""
    return [Middleware(UnansweredRequests)]
