"""A Ray cluster of our own on this machine: authenticated, quiet, gone when it is stopped."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping

from evospec.errors import EvoSpecError
from services.serve_environment import CALLS, OF_NODES

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 << 20  # traces and look-ups only; weights go through the registry
PROBE_S = 0.2
# A late call must not start another cluster behind our back.
AUTO_CONNECT = "RAY_ENABLE_AUTO_CONNECT"

# How an error of ours reads inside the traceback that Ray reports of another process.
_OWN_ERROR = re.compile(r"(?:evospec|actors|services)\.[\w.]*Error: (.+)")


class ClusterError(EvoSpecError):
    """Ray, or an actor of ours on it, does not start."""


class LocalRay:
    """Ray's daemons on this machine, and this process's connection to them."""

    def __init__(self) -> None:
        self._address: tuple[str, int] | None = None
        self._started = False

    def start(
        self,
        *,
        cpus: float,
        dashboard: bool,
        verbose: bool,
        json_logs: bool = False,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Starts a new cluster and connects to it.

        Args:
            resources: custom ones that this machine offers.
            json_logs: whether this process and all workers log JSON.

        Raises:
            ClusterError: this process is connected to a Ray cluster already, or Ray does not start.
        """
        _prepare_environment()
        import ray

        if ray.is_initialized():
            raise ClusterError(
                "this process is connected to a Ray cluster already: call ray.shutdown() first"
            )
        self._started = True
        try:
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                namespace="evospec",
                num_cpus=max(os.cpu_count() or 1, math.ceil(cpus)),
                resources=dict(resources or {}),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=dashboard,
                logging_level=logging.WARNING if verbose else logging.ERROR,
                log_to_driver=verbose,
                logging_config=ray.LoggingConfig(encoding="JSON") if json_logs else None,
            )
        except Exception as error:  # Ray tells by a plain one that it took too long
            raise ClusterError(f"Ray does not start: {_first_line(str(error))}") from error
        # With JSON, this process logs what it does; not each of its requests.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = (host, int(port))

    def stop(self) -> None:
        """Returns when the daemons have ended; does nothing when they were not started here."""
        import ray

        if self._started:
            ray.shutdown(wait_for_processes=True)
        self._started = False
        self._address = None

    @property
    def alive(self) -> bool:
        """Whether the cluster's control service listens."""
        if self._address is None:
            return False
        try:
            with socket.create_connection(self._address, timeout=1.0):
                return True
        except OSError:
            return False

    def run_while_alive(self, work: Callable[[], object], limit_s: float) -> None:
        """Runs `work` on a thread, and leaves it behind when the cluster dies or the time is up.

        A signal to the whole process group ends Ray's daemons as well, and Ray aborts a
        process that waits for them: cleaning up must not wait.
        """
        thread = threading.Thread(target=_logged, args=(work,), daemon=True)
        if not self.alive:
            return
        thread.start()
        for _ in range(math.ceil(limit_s / PROBE_S)):
            thread.join(PROBE_S)
            if not thread.is_alive() or not self.alive:
                return


def own_error(text: str) -> EvoSpecError:
    """The error of ours that made a remote call or a deployment fail, as one line."""
    found = _OWN_ERROR.findall(text)
    return ClusterError(found[-1].strip() if found else f"the cluster does not start: {_first_line(text)}")


def _logged(work: Callable[[], object]) -> None:
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        work()
    except (EvoSpecError, RayError, RayServeException, RuntimeError, TimeoutError) as error:
        logger.warning("the cluster was not wound down in order: %s", _first_line(str(error)))


def _prepare_environment() -> None:
    """Decides on authentication before Ray does, keeps Ray from reporting usage, and adds to Serve's proxy.

    Ray's daemons read these variables, so they stay set.
    """
    guarded = os.environ.get("RAY_AUTH_MODE") != "disabled"
    if not guarded:  # whoever reaches such a port could run code here
        os.environ.setdefault(CALLS, "0")
    for name, value in (OF_NODES | {AUTO_CONNECT: "0"}).items():
        os.environ.setdefault(name, value)
    if not guarded:
        return
    # A token that lives as long as this process; without it Ray writes one to the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" not in sys.modules:
        # Ray reads it on import. Imported earlier, it turns token authentication on by itself.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")
