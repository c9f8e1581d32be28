"""The registry's server as the cluster sees it: one address, behind which it dies and comes back."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

from redis import Redis

from services.valkey import EmbeddedValkey
from tests.chaos.kit.tcp_proxy import HOST, TcpProxy


class RegistryServer:
    """A Valkey that keeps its data on disk, behind a proxy whose address never changes."""

    def __init__(self, data_dir: Path) -> None:
        self._valkey = EmbeddedValkey(data_dir)
        self._valkey.start()
        self._password = urlsplit(self._valkey.url).password
        self.proxy = TcpProxy(_port(self._valkey))

    def __enter__(self) -> RegistryServer:
        self.proxy.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.proxy.__exit__(kind, error, traceback)
        self._valkey.stop()

    @property
    def url(self) -> str:
        """Through the proxy."""
        return urlunsplit(("redis", f":{self._password}@{HOST}:{self.proxy.port}", "/0", "", ""))

    @property
    def direct_url(self) -> str:
        """Past the proxy; another one after each restart."""
        return self._valkey.url

    def kill(self) -> None:
        """SIGKILL, without a chance to save; returns when the server is gone."""
        with closing(self.client()) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        self._valkey.stop()  # reaps it

    def restart(self) -> None:
        """Starts it from what is on disk; does nothing while it runs."""
        self._valkey.start()
        self.proxy.upstream = _port(self._valkey)

    def receives(self, size: int) -> bool:
        """Whether a command of at least `size` bytes is on its way in, and not complete."""
        with closing(self.client()) as client:
            return any(int(connection["qbuf"]) >= size for connection in client.client_list())

    def client(self) -> Redis:
        """A client of the server itself, past the proxy."""
        return Redis.from_url(self.direct_url)


def _port(server: EmbeddedValkey) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port
