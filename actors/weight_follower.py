"""Keeps one replica on the adapter version that the registry wants there."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np

from actors.adoption import Adoption
from actors.counts import FollowerCounts
from evospec.errors import EngineFailedError, EvoSpecError, RegistryError, VersionMissingError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.ports import ACKNOWLEDGED_FOR_S, RegistryFactory, WeightRegistry

logger = logging.getLogger(__name__)

JITTER = 0.25  # replicas started together shall not poll together
MAX_PAUSE_S = 30.0
SWAP_TIMEOUT_S = 60.0
ACKNOWLEDGE_EVERY_S = ACKNOWLEDGED_FOR_S / 3


class WeightFollower:
    """Polls the registry, wakes early on its hints, and hands the wanted version to the engine.

    What the registry's rollout wants of this replica is the truth, and may be an older version, or
    0, the base; a registry without data (serial 0) wants nothing. Whatever fails, the version at
    hand stays. A version that was refused is not fetched again before another one was wanted; one
    that is missing is looked for at each poll. What runs is acknowledged again and again, so that
    replicas that are gone are told from those that have nothing to change.
    """

    def __init__(self, replica: str, registry: RegistryFactory, adoption: Adoption, poll_s: float) -> None:
        self._replica = replica
        self._open = registry
        self._adoption = adoption
        self._poll_s = poll_s
        self._random = np.random.default_rng(list(replica.encode()))
        self._registry: WeightRegistry | None = None
        self._counts = FollowerCounts()
        self._serial = 0
        self._refused: int | None = None
        self._acknowledged: int | None = None
        self._acknowledge_by_s = 0.0
        self._failed_polls = 0
        self._logged: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weight-follower", daemon=True)

    def start(self) -> None:
        """Polls once before it returns, so that traffic meets the wanted version."""
        self.poll()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        self._thread.join(timeout_s)

    def counts(self) -> FollowerCounts:
        return replace(self._counts)

    def poll(self) -> None:
        """Goes to the version that the registry wants here and acknowledges it; never raises."""
        self._counts.polls += 1
        try:
            self._catch_up(self._connection())
        except EvoSpecError as error:
            self._unreachable(error)
        except Exception:  # a bug: no version may take serving down, and the next one may do better
            self._failed_polls += 1
            self._counts.not_applied += 1
            if self._is_new("bug"):
                logger.exception("keeping adapter version %d", self._counts.version)
        else:
            self._logged.discard("registry")

    def _catch_up(self, registry: WeightRegistry) -> None:
        rollout = registry.rollout()
        if rollout.serial == 0 or rollout.serial < self._serial:
            self._acknowledged = None  # the registry lost its data, acknowledgements with it
        self._serial = rollout.serial
        applied = rollout.serial == 0 or self._follow(registry, rollout.wanted(self._replica))
        self._acknowledge(registry)
        self._failed_polls = 0 if applied else self._failed_polls + 1

    def _acknowledge(self, registry: WeightRegistry) -> None:
        now, version = time.monotonic(), self._counts.version
        if self._acknowledged == version and now < self._acknowledge_by_s:
            return
        registry.acknowledge(self._replica, version)
        self._acknowledged, self._acknowledge_by_s = version, now + ACKNOWLEDGE_EVERY_S

    def _follow(self, registry: WeightRegistry, wanted: int) -> bool:
        """False when the engine did not get to the swap: to be tried again, but not at once."""
        if wanted != self._refused:
            self._refused = None
        if wanted in (self._counts.version, self._refused):
            return True
        try:
            adapter = self._adoption.build(registry.fetch(wanted)) if wanted else AdapterWeights(0, {})
            self._swap(adapter)
        except VersionMissingError as error:
            self._counts.missing += 1
            self._warn_once(f"version {wanted} missing", error)
        except WireError as error:
            self._refused = wanted
            self._counts.refused += 1
            self._warn("refused", error)
        except (EngineFailedError, TimeoutError) as error:
            self._counts.not_applied += 1
            self._warn_once("not applied", error)
            return False
        else:
            self._counts.rollbacks += wanted < self._counts.version
            self._counts.swaps += 1
            self._counts.version = wanted
            self._logged.clear()
        return True

    def _swap(self, adapter: AdapterWeights) -> None:
        swapped = self._adoption.swap(adapter)
        try:
            swapped.result(SWAP_TIMEOUT_S)
        except TimeoutError:
            if swapped.cancel():
                raise TimeoutError(
                    f"the engine did not come to the end of its cycle in {SWAP_TIMEOUT_S:g} s"
                ) from None
            swapped.result()  # it is being written just now

    def _connection(self) -> WeightRegistry:
        if self._registry is None:
            self._registry = self._open()
        return self._registry

    def _unreachable(self, error: EvoSpecError) -> None:
        self._failed_polls += 1
        self._counts.registry_failures += 1
        self._warn_once("registry", error)

    def _is_new(self, reason: str) -> bool:
        """Whether a reason has not been logged since the last swap."""
        new = reason not in self._logged
        self._logged.add(reason)
        return new

    def _warn_once(self, reason: str, error: Exception) -> None:
        if self._is_new(reason):
            self._warn(reason, error)

    def _warn(self, reason: str, error: Exception) -> None:
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
