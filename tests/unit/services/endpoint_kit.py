"""A small OpenAI-compatible endpoint with known delays, on a real port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


@dataclass
class Endpoint:
    """Streams `pieces` words per answer, the first after `first_s`, the others `gap_s` apart.

    With `key`, other keys get 401. Of `capacity` answers at a time, further ones get 429.
    """

    first_s: float = 0.0
    gap_s: float = 0.0
    pieces: int = 4
    key: str | None = None
    capacity: int = 1000
    extension: bool = True  # EvoSpec's, in `usage`
    cut: bool = False  # the connection ends before the answer does
    bodies: list[Message] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0
    url: str = ""

    def __enter__(self) -> Endpoint:
        config = uvicorn.Config(
            self._app, interface="asgi3", host="127.0.0.1", port=0, log_level="critical", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    async def _app(self, scope: Message, receive: Receive, send: Send) -> None:
        sent = b"".join(value for name, value in scope["headers"] if name == b"authorization")
        if self.key is not None and sent != f"Bearer {self.key}".encode():
            await _json(send, 401, {"error": {"message": "wrong key"}})
        elif scope["path"] == "/v1/models":
            await _json(send, 200, {"data": [{"id": "first"}, {"id": "second"}]})
        elif self.running >= self.capacity:
            await _json(send, 429, {"error": {"message": "too busy"}})
        else:
            await self._answer(scope["path"], await _body(receive), send)

    async def _answer(self, path: str, body: Message, send: Send) -> None:
        self.paths.append(path)
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if body.get("stream"):
                await self._stream(path, send)
            else:
                await asyncio.sleep(self.first_s)
                choice = {"text": "all of it", "finish_reason": "stop"}
                await _json(send, 200, {"choices": [choice], "usage": self._usage()})
        finally:
            self.running -= 1

    async def _stream(self, path: str, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in range(self.pieces):
            await asyncio.sleep(self.gap_s if piece else self.first_s)
            last = piece == self.pieces - 1
            text = {"delta": {"content": "word"}} if "chat" in path else {"text": "word"}
            await _event(send, {"choices": [{**text, "finish_reason": "stop" if last else None}]})
            if self.cut:
                return
        await _event(send, {"choices": [], "usage": self._usage()})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _usage(self) -> Message:
        """Three tokens a piece but for the first, which prompt processing yields."""
        usage: Message = {"prompt_tokens": 7, "completion_tokens": 1 + 3 * (self.pieces - 1)}
        if self.extension:
            cycles = self.pieces - 1
            usage["evospec"] = {"cycles": cycles, "drafted": 5 * cycles, "accepted": 2 * cycles}
        return usage


async def _body(receive: Receive) -> Message:
    raw = b""
    while True:
        message = await receive()
        raw += message.get("body", b"")
        if not message.get("more_body"):
            found: Message = json.loads(raw)
            return found


async def _event(send: Send, content: Message) -> None:
    data = f"data: {json.dumps(content)}\n\n".encode()
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _json(send: Send, status: int, content: Message) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
