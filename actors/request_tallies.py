"""What each request's cycles under one adapter version came to, summed by version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evospec.align.arm import ArmSums, Observation
from evospec.engine.request import StepOutput

KEPT_VERSIONS = 8


@dataclass(slots=True)
class _Tally:
    """One running request since it began or the version changed."""

    tokens: int = 0
    cycles: int = 0
    seconds: float = 0.0
    drafts: int = 0
    hits: int = 0


class RequestTallies:
    """Turns an engine's outputs into one `Observation` per request and adapter version.

    Written by the engine's thread only. `sums` may be called from any thread: what it returns
    is replaced by the next observation, never changed.
    """

    def __init__(self) -> None:
        self._version = 0
        self._running: dict[str, _Tally] = {}
        self._sums: dict[int, ArmSums] = {}

    def sums(self) -> dict[int, ArmSums]:
        """By adapter version, for the latest ones that ended requests; not to be changed."""
        return self._sums

    def record(self, outputs: Sequence[StepOutput], version: int, seconds: float) -> None:
        """Takes in one step.

        Args:
            outputs: what the step emitted.
            version: adapter version that the step drafted with.
            seconds: wall time of the step's cycle.
        """
        if version != self._version:
            for tally in self._running.values():
                self._observe(tally)
            self._running = {request_id: _Tally() for request_id in self._running}
            self._version = version
        for output in outputs:
            self._count(output, seconds)

    def _count(self, output: StepOutput, seconds: float) -> None:
        tally = self._running.get(output.request_id)
        if tally is None:  # its first output: the token of prefill, or nothing when it was cancelled
            if output.finish_reason is None:
                self._running[output.request_id] = _Tally()
            return
        if output.tokens:
            tally.tokens += len(output.tokens)
            tally.cycles += 1
            tally.seconds += seconds
            tally.drafts += output.drafted > 0
            tally.hits += output.first_accepted
        if output.finish_reason is not None:
            self._observe(self._running.pop(output.request_id))

    def _observe(self, tally: _Tally) -> None:
        if not tally.cycles:
            return
        seen = ArmSums.of(Observation(tally.tokens, tally.cycles, tally.seconds, tally.drafts, tally.hits))
        # The version in force goes last, so that the first one is the longest unused.
        others = {version: sums for version, sums in self._sums.items() if version != self._version}
        for version in list(others)[: max(0, len(others) + 1 - KEPT_VERSIONS)]:
            del others[version]
        self._sums = {**others, self._version: self._sums.get(self._version, ArmSums()) + seen}
