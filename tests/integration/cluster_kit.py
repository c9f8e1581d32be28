"""A Ray cluster of several nodes on one machine: a loopback address, a raylet and an HTTP proxy each."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

from services.serve_environment import OF_NODES
from services.valkey import EXEC_BOUND_TO_PARENT
from tests.integration.process_kit import kill_descendants, marked_environment
from tests.integration.server_kit import free_ports
from tests.unit.actors.fakes import wait_until

RAY = str(Path(sys.executable).with_name("ray"))
HEAD = "127.0.0.11"
START_S = 120.0
ATTEMPTS = 3
APPLICATIONS = "/api/serve/applications/"
# A busy machine takes longer to start a proxy than Serve waits for one before it starts another.
PATIENCE = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
OBJECT_STORE_BYTES = "80000000"


class RayNodes:
    """A head that runs no work, and workers, as KubeRay starts them; all processes end with the block.

    Args:
        workers: how many.
        settings: of the nodes' environment, beside what Serve configs say must be there.
    """

    def __init__(self, workers: int, settings: Mapping[str, str]) -> None:
        self._addresses = [HEAD, *(f"127.0.0.{12 + number}" for number in range(workers))]
        self._gcs_port, self._dashboard_port = free_ports(2)
        self._token = secrets.token_hex(32)
        access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        self._settings = {**OF_NODES, **PATIENCE, **access, **settings}
        self._ended = ExitStack()

    def __enter__(self) -> RayNodes:
        self._folder = Path(tempfile.mkdtemp(prefix="evo-"))  # short: sockets are below it
        self._ended.callback(shutil.rmtree, self._folder, ignore_errors=True)
        try:
            self._start()
        except BaseException:
            self._ended.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.close()

    @property
    def workers(self) -> list[str]:
        """Addresses of the nodes that run work."""
        return self._addresses[1:]

    def lose(self, address: str) -> None:
        """All processes of a node are killed at once."""
        assert kill_descendants(address)

    def deploy(self, serve_config: dict[str, Any]) -> None:
        """As KubeRay does with `serveConfigV2`."""
        answer = self._ask("PUT", APPLICATIONS, json=serve_config)
        assert answer.is_success, answer.text

    def applications(self) -> dict[str, Any]:
        """What Serve says of them, and of its proxies."""
        found: dict[str, Any] = self._ask("GET", APPLICATIONS).json()
        return found

    def _start(self) -> None:
        for attempt in range(ATTEMPTS):
            if self._starts_head():
                break
            kill_descendants(HEAD)
            if attempt == ATTEMPTS - 1:
                log = (self._folder / f"{HEAD}.log").read_text(errors="replace")
                pytest.fail(f"Ray's head did not start: {log[-1000:]}")
        for address in self.workers:
            self._start_worker(address)

    def _start_worker(self, address: str) -> None:
        for _ in range(ATTEMPTS):
            if self._joins(address):
                return
            kill_descendants(address)
        pytest.fail(f"Ray's node {address} did not start")

    def _joins(self, address: str) -> bool:
        """Starts a worker, and waits until it has joined or Ray has given it up."""
        before = self._alive()
        process = self._start_node(address, f"--address={HEAD}:{self._gcs_port}", "--num-cpus=3")
        wait_until(lambda: self._alive() > before or process.poll() is not None, START_S)
        return process.poll() is None

    def _starts_head(self) -> bool:
        """Ray gives a node 30 s and then gives up, which a busy machine may take."""
        where = [f"--port={self._gcs_port}", f"--dashboard-port={self._dashboard_port}", "--num-cpus=0"]
        where += ["--dashboard-host=127.0.0.1", f"--temp-dir={self._folder / 'ray'}"]
        process = self._start_node(HEAD, "--head", *where)
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if self._ask("GET", APPLICATIONS).is_success:
                    return True
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        return False

    def _start_node(self, address: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", EXEC_BOUND_TO_PARENT, str(os.getpid())]
        command += [sys.executable, RAY, "start", "--block", f"--node-ip-address={address}", *options]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
        environment = {**marked_environment(address), **self._settings, "PYTHONPATH": os.getcwd()}
        with (self._folder / f"{address}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._ended.callback(process.wait)
        self._ended.callback(kill_descendants, address)
        return process

    def _alive(self) -> int:
        """Nodes that have joined."""
        time.sleep(0.2)
        nodes = self._ask("GET", "/nodes?view=summary").json()["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def _ask(self, method: str, path: str, json: dict[str, Any] | None = None) -> httpx.Response:
        return httpx.request(
            method,
            f"http://127.0.0.1:{self._dashboard_port}{path}",
            json=json,
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=60,
            trust_env=False,
        )


def wait_until_running(nodes: RayNodes, application: str, timeout_s: float = 240.0) -> None:
    """All deployments are as they were asked for."""

    def status() -> str:
        return str(nodes.applications()["applications"].get(application, {}).get("status"))

    wait_until(lambda: _seen(status()) in ("RUNNING", "DEPLOY_FAILED"), timeout_s)
    assert status() == "RUNNING"


def _seen(status: str) -> str:
    time.sleep(0.2)  # each look is a request to the dashboard
    return status
