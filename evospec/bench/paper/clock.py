"""Time that a call may take: parts stop when it is used up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from evospec.bench.measure import Turn

MARGIN_S = 20.0  # for imports before the clock starts, the turn under way, and writing files


class OutOfTimeError(Exception):
    """A part was given up; so much of it was done."""

    def __init__(self, share: float) -> None:
        super().__init__(f"{share:.0%} done")
        self.share = share


@dataclass(slots=True)
class CallClock:
    """Started with the command.

    Attributes:
        minutes: None: there is no limit.
        now: seconds of some clock.
    """

    minutes: float | None = None
    now: Callable[[], float] = time.perf_counter
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.now()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self.now() - self._began

    @property
    def left(self) -> float:
        """Seconds; infinite without a limit."""
        return float("inf") if self.minutes is None else 60 * self.minutes - MARGIN_S - self.seconds

    def check(self, share: float) -> None:
        """Raises OutOfTimeError when no time is left; `share` of the part is done."""
        if self.left <= 0:
            raise OutOfTimeError(share)

    def within(self, turns: Iterator[Turn], before: int, count: int) -> Iterator[Turn]:
        """Passes turns on while there is time; so many of `count` came before them."""
        for number, turn in enumerate(turns, start=before + 1):
            self.check(number / count)
            yield turn
