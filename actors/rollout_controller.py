"""The rollout controller: tries each new adapter version on a few replicas before all run it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from actors.handles import NoReplicaError
from actors.status import ReplicaStatus
from actors.trial import Trial
from evospec.align.arm import ArmSums
from evospec.config import Config
from evospec.errors import DecisionRefusedError, EvoSpecError, RegistryError
from evospec.ports import RegistryFactory, WeightRegistry
from evospec.wire import Decision, Rollout

logger = logging.getLogger(__name__)

MAX_PAUSE_S = 30.0

Phase = Literal["idle", "waiting", "canary"]


@dataclass(slots=True)
class ControllerCounts:
    """`promoted` and `revoked` are this controller's own decisions since it started."""

    promoted: int = 0
    revoked: int = 0
    looks: int = 0
    registry_failures: int = 0
    replica_failures: int = 0
    decisions_refused: int = 0


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """What the controller is at.

    Attributes:
        phase: `waiting` for canary replicas to be chosen or to take the candidate up.
        candidate: 0 when there is none.
        canary_arm: requests that the candidate has served in its canary.
        control_arm: requests that the stable version has served meanwhile.
        verdict: what the last look at a candidate came to.
    """

    phase: Phase
    stable: int
    candidate: int
    canary: tuple[str, ...]
    canary_arm: ArmSums
    control_arm: ArmSums
    verdict: str
    counts: ControllerCounts


def _exit() -> None:
    os._exit(1)


class RolloutController:
    """Run as a Ray actor, one per registry namespace.

    One thread looks at the registry and, while there is a candidate, at the replicas. What was
    decided stands in the registry; a controller that was restarted only counts requests anew.

    Args:
        replicas: status of each replica that answers; NoReplicaError when none does.
        clock: monotonic seconds.
        crashed: called on the thread when it can't go on; by default the process exits, for Ray to
            start a new one.
    """

    def __init__(
        self,
        config: Config,
        registry: RegistryFactory,
        replicas: Callable[[], list[ReplicaStatus]],
        clock: Callable[[], float] = time.monotonic,
        crashed: Callable[[], None] = _exit,
    ) -> None:
        self._config = config
        self._open = registry
        self._replicas = replicas
        self._clock = clock
        self._crashed = crashed
        self._registry: WeightRegistry | None = None
        self._rollout = Rollout()
        self._trial: Trial | None = None
        self._verdict = ""
        self._counts = ControllerCounts()
        self._failures = 0  # of the registry, one after the other
        self._logged: set[str] = set()
        self._status = self._describe()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout-controller", daemon=True)
        self._thread.start()

    def status(self) -> RolloutStatus:
        """As of the end of the last look."""
        return self._status

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends after the current look."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
                self._pause()
            if self._registry is not None:
                self._registry.close()
        except Exception:  # the thread's outermost frame: without it the controller would be a silent shell
            logger.exception("the rollout controller crashed")
            self._crashed()

    def _turn(self) -> None:
        self._counts.looks += 1
        try:
            self._look(self._connection())
        except DecisionRefusedError as error:  # someone was faster: the next look shows what they decided
            self._failures = 0
            self._counts.decisions_refused += 1
            logger.info("not carried out: %s", error)
            if self._trial is not None:
                self._trial.refusals += 1
        except EvoSpecError as error:
            self._failures += 1
            self._counts.registry_failures += 1
            self._warn_once("registry", error)
        else:
            self._failures = 0
            self._logged.discard("registry")
        self._status = self._describe()

    def _look(self, registry: WeightRegistry) -> None:
        self._rollout = registry.rollout()
        if not self._rollout.candidate:
            self._trial = None
            return
        if self._trial is None or not self._trial.compares(self._rollout):
            self._trial = self._new_trial()
        try:
            statuses = self._replicas()
        except NoReplicaError as error:
            self._counts.replica_failures += 1
            self._warn_once("replicas", error)
            return
        self._logged.discard("replicas")
        decision = self._trial.look(self._clock(), self._rollout, statuses)
        self._verdict = f"version {self._rollout.candidate}: {self._trial.verdict}"
        if decision is not None:
            self._carry_out(registry, decision)

    def _new_trial(self) -> Trial:
        config = self._config
        return Trial(config.rollout, config.serve.replicas, self._rollout, began_s=self._clock())

    def _carry_out(self, registry: WeightRegistry, decision: Decision) -> None:
        registry.decide(decision)
        logger.info("version %d: %s: %s", decision.version, decision.kind, decision.reason)
        self._counts.promoted += decision.kind == "promote"
        self._counts.revoked += decision.kind == "revoke"

    def _connection(self) -> WeightRegistry:
        if self._registry is None:
            self._registry = self._open()
        return self._registry

    def _warn_once(self, what: str, error: EvoSpecError) -> None:
        if what not in self._logged:
            self._logged.add(what)
            logger.warning("rollouts wait until the %s can be reached: %s", what, error)

    def _pause(self) -> None:
        """Until a hint or the next look is due; longer after each failure of the registry."""
        pause_s = self._config.rollout.poll_s
        if self._registry is None or self._failures:
            self._stopping.wait(min(pause_s * 2.0 ** min(self._failures, 16), MAX_PAUSE_S))
            return
        try:
            self._registry.wait(pause_s)
        except RegistryError as error:
            self._failures += 1
            self._counts.registry_failures += 1
            self._warn_once("registry", error)

    def _describe(self) -> RolloutStatus:
        trial = self._trial
        canary = ArmSums() if trial is None else trial.canary
        control = ArmSums() if trial is None else trial.control
        phase: Phase = "idle"
        if trial is not None:
            phase = "waiting" if trial.running_s is None else "canary"
        return RolloutStatus(
            phase=phase,
            stable=self._rollout.stable,
            candidate=self._rollout.candidate,
            canary=tuple(sorted(self._rollout.canary)),
            canary_arm=canary,
            control_arm=control,
            verdict=self._verdict,
            counts=replace(self._counts),
        )
