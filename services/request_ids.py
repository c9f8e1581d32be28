"""The id of each HTTP request: taken from the client or made here, in every answer and in logs."""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import api_errors

logger = logging.getLogger(__name__)

HEADER = "x-request-id"
_HARMLESS = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # in logs and headers
_current: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """Of the HTTP request that this code runs for; empty elsewhere."""
    return _current.get()


def name_of_request() -> str:
    """It, as log messages begin with it."""
    return f"request {_current.get() or '(no id)'}"


class RequestIds:
    """ASGI middleware around everything else: even the answer to a bug bears the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _HARMLESS.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        token = _current.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the outermost frame of a request: nothing above could answer it
            logger.exception("%s failed", name_of_request())
            if begun:
                raise  # the client must see that the answer is not whole
            error = api_errors.server_error("The server failed to answer this request.")
            await JSONResponse(error.body(), error.status)(scope, receive, send_with_id)
        finally:
            _current.reset(token)
