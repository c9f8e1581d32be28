"""Keeps one replica on the registry's current adapter version."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from evospec.errors import EngineFailedError, RegistryError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.ports import RegistryFactory, WeightRegistry
from evospec.wire import VersionedWeights

logger = logging.getLogger(__name__)

JITTER = 0.25  # replicas started together shall not poll together
MAX_PAUSE_S = 30.0
SWAP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Adoption:
    """How fetched weights become the engine's: `build` checks and may raise WireError, `swap` applies."""

    build: Callable[[VersionedWeights], AdapterWeights]
    swap: Callable[[AdapterWeights], Future[None]]


@dataclass(slots=True)
class FollowerCounts:
    version: int = 0
    swaps: int = 0
    polls: int = 0
    registry_failures: int = 0
    refused: int = 0  # versions that did not pass the checks
    not_applied: int = 0  # swaps that the engine did not get to


class WeightFollower:
    """Polls the registry, wakes early on its hints, and hands new versions to the engine.

    The registry's pointer is the truth. Whatever fails, the version at hand
    stays; a version that was refused is not fetched again.
    """

    def __init__(self, replica: str, registry: RegistryFactory, adoption: Adoption, poll_s: float) -> None:
        self._replica = replica
        self._open = registry
        self._adoption = adoption
        self._poll_s = poll_s
        self._random = np.random.default_rng(list(replica.encode()))
        self._registry: WeightRegistry | None = None
        self._counts = FollowerCounts()
        self._refused = 0
        self._acknowledged = -1
        self._failed_polls = 0
        self._logged: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weight-follower", daemon=True)

    def start(self) -> None:
        """Polls once before it returns, so that traffic meets the current version."""
        self.poll()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        self._thread.join(timeout_s)

    def counts(self) -> FollowerCounts:
        return replace(self._counts)

    def poll(self) -> None:
        """Adopts and acknowledges the current version if it is a new one; never raises EvoSpecError."""
        self._counts.polls += 1
        try:
            self._catch_up(self._connection())
        except RegistryError as error:
            self._unreachable(error)
        else:
            self._failed_polls = 0
            self._logged.discard("registry")

    def _catch_up(self, registry: WeightRegistry) -> None:
        current = registry.current_version()
        if current > self._counts.version and current != self._refused:
            self._adopt(registry, current)
        # A pointer behind the version at hand means that the registry lost its data.
        if self._acknowledged != self._counts.version or current < self._counts.version:
            registry.acknowledge(self._replica, self._counts.version)
            self._acknowledged = self._counts.version

    def _adopt(self, registry: WeightRegistry, version: int) -> None:
        try:
            adapter = self._adoption.build(registry.fetch(version))
            self._adoption.swap(adapter).result(SWAP_TIMEOUT_S)
        except WireError as error:
            self._refused = version
            self._counts.refused += 1
            self._log("refused", error)
        except (EngineFailedError, TimeoutError) as error:
            self._counts.not_applied += 1
            self._log("not applied", error)
        else:
            self._counts.version = version
            self._counts.swaps += 1
            self._logged.clear()

    def _connection(self) -> WeightRegistry:
        if self._registry is None:
            self._registry = self._open()
        return self._registry

    def _unreachable(self, error: RegistryError) -> None:
        self._failed_polls += 1
        self._counts.registry_failures += 1
        self._log("registry", error)

    def _log(self, reason: str, error: Exception) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning("keeping adapter version %d (%s): %s", self._counts.version, reason, error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._pause()
            if not self._stopping.is_set():
                self.poll()
        if self._registry is not None:
            self._registry.close()

    def _pause(self) -> None:
        """Until a hint or the next poll is due; longer after each failed poll."""
        pause = min(self._poll_s * 2.0 ** min(self._failed_polls, 16), MAX_PAUSE_S)
        pause *= 1.0 + self._random.uniform(-JITTER, JITTER)
        if self._registry is None or self._failed_polls:
            self._stopping.wait(pause)
            return
        try:
            self._registry.wait(pause)
        except RegistryError as error:
            self._unreachable(error)
