"""A TCP proxy that can be slow, silent, or not there."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"
CALL_TIMEOUT_S = 30.0
CHUNK = 1 << 16
TICK_S = 0.02


class TcpProxy:
    """Listens on one port of the loopback interface for as long as it lives.

    All of it may be used from any thread, at any time.

    Attributes:
        upstream: port on the loopback interface that new connections are passed on to.
        delay_s: every piece of data waits so long, in either direction.
        bytes_per_s: no more passes in each direction of a connection; None is no limit.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        # Bound but never listening: the port stays ours while nobody listens on it.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()
        self._reserved.close()

    @property
    def url(self) -> str:
        """For what speaks HTTP behind it."""
        return f"http://{HOST}:{self.port}"

    def restore(self) -> None:
        """Everything passes, at full speed."""
        self.delay_s, self.bytes_per_s = 0.0, None
        self._call(self._open())

    def stall(self) -> None:
        """Connections stay and are accepted, and nothing passes."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def cut(self) -> None:
        """Ends all connections; new ones are accepted."""
        self._call(self._cut())

    def refuse(self) -> None:
        """Ends all connections and accepts none."""
        self._call(self._shut())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    async def _open(self) -> None:
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self.port))

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        connections = tuple(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes on what comes until one side ends, then ends the other."""
        writers = [writer]
        try:
            await self._flowing.wait()
            onward_reader, onward_writer = await asyncio.open_connection(HOST, self.upstream)
            writers.append(onward_writer)
            await _first(self._pump(reader, onward_writer), self._pump(onward_reader, writer))
        except ConnectionError:  # nobody listens upstream: the client sees its connection end
            pass
        except asyncio.CancelledError:  # cut: what is on its way is lost
            for cut in writers:
                cut.transport.abort()
            raise
        for ended in writers:
            ended.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(self._chunk()):
            await asyncio.sleep(self.delay_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0))
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()

    def _chunk(self) -> int:
        """Bytes passed on at a time: little of a narrow stream, so that it flows."""
        return CHUNK if self.bytes_per_s is None else max(1, min(CHUNK, int(self.bytes_per_s * TICK_S)))


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Returns when one of them has ended, the others cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((HOST, port))
    return bound
