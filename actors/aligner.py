"""The aligner: learns from the replicas' traces in the background and publishes what it learned."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from actors.lineage import Lineage
from actors.publisher import Publication, PublisherCounts, WeightPublisher
from evospec.align.build import build_trainer
from evospec.align.gate import GateReport
from evospec.align.replay import Admission, ReplayCounts
from evospec.align.trainer import AlignmentTrainer, TrainerCounts
from evospec.config import Config
from evospec.errors import EvoSpecError, WireError
from evospec.ports import RegistryFactory
from evospec.wire import Fingerprints

logger = logging.getLogger(__name__)

MAX_INBOX = 1024  # traces received and not yet looked at
IDLE_S = 1.0  # without traces, an aligner looks at the registry this often
NICENESS = 10  # on shared processors, decoding comes first


@dataclass(slots=True)
class AlignerProgress:
    """Counters and latest figures.

    `rejected` candidates did not pass the gate; `returns` counts how often training had to go back
    to another version's weights. `steps` are those of this process.
    """

    received: int = 0
    dropped: int = 0
    admitted: int = 0
    steps: int = 0
    gated: int = 0
    rejected: int = 0
    returns: int = 0
    loss: float | None = None
    gate: GateReport | None = None


@dataclass(frozen=True, slots=True)
class AlignerStatus:
    progress: AlignerProgress
    trainer: TrainerCounts
    replay: ReplayCounts
    publisher: PublisherCounts


def _exit() -> None:
    os._exit(1)


class Aligner:
    """Run as a Ray actor, one per cluster.

    `submit` only queues; one thread checks, trains and publishes. Each trace pays for
    `steps_per_trace` steps. While a candidate is being tried it trains on and offers no
    other. After a restart it goes on from the registry's stable version.

    Args:
        crashed: called on the thread when it can't go on; by default the process exits, for Ray to
            start a new one.

    Raises:
        EvoSpecError: target or drafter can't be had.
    """

    def __init__(
        self,
        config: Config,
        registry: RegistryFactory,
        build: Callable[[Config], AlignmentTrainer] = build_trainer,
        crashed: Callable[[], None] = _exit,
    ) -> None:
        torch.set_num_threads(config.alignment.threads)
        self._config = config.alignment
        self._trainer = build(config)
        self._publisher = WeightPublisher(
            registry, _fingerprints(self._trainer), canary=config.rollout.canary
        )
        self._lineage = Lineage(self._trainer, self._publisher)
        self._crashed = crashed
        self._wake = threading.Condition()
        self._inbox: deque[bytes] = deque()
        self._progress = AlignerProgress()
        self._steps_since_gate = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="aligner", daemon=True)
        self._thread.start()

    def submit(self, trace: bytes) -> None:
        """Queues an encoded trace; the oldest is dropped when too many wait."""
        with self._wake:
            self._progress.received += 1
            self._inbox.append(trace)
            if len(self._inbox) > MAX_INBOX:
                self._inbox.popleft()
                self._progress.dropped += 1
            self._wake.notify()

    def status(self) -> AlignerStatus:
        return AlignerStatus(
            progress=replace(self._progress),
            trainer=replace(self._trainer.counts),
            replay=replace(self._trainer.replay.counts),
            publisher=replace(self._publisher.counts),
        )

    def close(self, timeout_s: float = 30.0) -> None:
        """Ends after the current step."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        os.nice(NICENESS)
        try:
            while not self._stopping:
                self._turn()
            self._publisher.close()
        except Exception:  # the thread's outermost frame: without it the aligner would be a silent shell
            logger.exception("the aligner crashed")
            self._crashed()

    def _turn(self) -> None:
        """Looks at new traces and at the registry, then does at most one step and at most one publication."""
        self._admit_traces()
        if not self._keep_up():
            self._rest()
            return
        stepped = self._step_if_earned()
        due = self._steps_since_gate >= self._config.steps_per_version
        if due and self._publisher.may_offer:
            self._offer_version()
        elif not stepped:
            self._rest()

    def _keep_up(self) -> bool:
        """Follows the registry; False while there is no version to train from, and once superseded."""
        publisher = self._publisher
        if not publisher.joined and publisher.may_call:
            publisher.join()
        if publisher.joined and self._lineage.follow():
            self._progress.returns += 1
            self._steps_since_gate = 0
        return self._lineage.started and not publisher.counts.superseded

    def _admit_traces(self) -> None:
        with self._wake:
            traces = tuple(self._inbox)
            self._inbox.clear()
        for trace in traces:
            try:
                admission = self._trainer.add(trace)
            except WireError as error:
                if self._trainer.counts.refused_traces == 1:
                    logger.warning("a trace was refused; later ones are only counted: %s", error)
            else:
                self._progress.admitted += admission in (Admission.TRAINING, Admission.HELD_OUT)

    def _step_if_earned(self) -> bool:
        progress = self._progress
        if not self._trainer.due:
            return False
        step = self._trainer.step()
        progress.steps += 1
        if step.applied:
            progress.loss = step.loss
            self._steps_since_gate += 1
        return True

    def _offer_version(self) -> None:
        """Publishes the weights as they are now, if they are better on held-out traces."""
        report = self._trainer.gate()
        self._progress.gated += 1
        self._progress.gate = report
        if not report.passes(self._config.min_gain):
            self._progress.rejected += 1
            self._steps_since_gate = 0
            return
        adapter = self._trainer.candidate(self._publisher.next_version, report)
        if self._lineage.offer(adapter, self._metrics(report)) is not Publication.FAILED:
            self._steps_since_gate = 0

    def _metrics(self, report: GateReport) -> dict[str, float]:
        metrics = {
            "acceptance_length": report.candidate.expected,
            "parent_acceptance_length": report.current.expected,
            "greedy_acceptance_length": report.candidate.greedy,
            "positions": float(report.positions),
            "steps": float(self._trainer.counts.steps),
        }
        for kind in report.passed(self._config.min_gain):
            metrics[f"kind_{kind}_gain"] = report.kinds[kind].gain
        if self._progress.loss is not None:
            metrics["loss"] = self._progress.loss
        return metrics

    def _rest(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._stopping, IDLE_S)


def _fingerprints(trainer: AlignmentTrainer) -> Fingerprints:
    if trainer.limits.fingerprints is None:
        raise EvoSpecError(
            "an aligner must know whose traces it learns from: set the trace limits' fingerprints"
        )
    return trainer.limits.fingerprints
