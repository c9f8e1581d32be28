"""The id of each HTTP request, for logs. Serve's proxy takes it from the client or makes it, and sends it
back in the header x-request-id of every answer; here it is read."""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import api_errors

logger = logging.getLogger(__name__)

HEADER = "x-request-id"
LONGEST = 128
_HARMFUL = re.compile(r"[^A-Za-z0-9._:/+=-]")  # in lines of a log
_current: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """Of the HTTP request that this code runs for; empty elsewhere."""
    return _current.get()


def name_of_request() -> str:
    """It, as log messages begin with it."""
    return f"request {_current.get() or '(no id)'}"


def request_id_of(scope: Scope) -> str:
    """As it may stand in a log; empty where Serve's proxy was not asked."""
    return _HARMFUL.sub("_", Headers(scope=scope).get(HEADER, "")[:LONGEST])


class RequestIds:
    """ASGI middleware around everything else: what goes wrong anywhere is logged with the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        token = _current.set(request_id_of(scope))
        try:
            await self._app(scope, receive, send_and_note)
        except Exception:  # the outermost frame of a request: nothing above could answer it
            logger.exception("%s failed", name_of_request())
            if begun:
                raise  # the client must see that the answer is not whole
            error = api_errors.server_error("The server failed to answer this request.")
            await JSONResponse(error.body(), error.status)(scope, receive, send)
        finally:
            _current.reset(token)
