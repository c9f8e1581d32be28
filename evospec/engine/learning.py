"""When cycles are learned from: at once, or part by part beside the device."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from evospec.engine.observer import Observer
from evospec.engine.spare_time import SpareTime
from evospec.engine.stats import EngineStats
from evospec.stopwatch import NO_STOPWATCH, Stopwatch

_LATEST = 4  # cycles without learning, at most
_SELDOM = 16  # cycles learned from at once while drafts don't depend on it: many take little longer than one


class Learning:
    """Lets an observer work.

    Attributes:
        stopwatch: shown what learning takes; no cycle overlaps the next while one watches.
        spare: what the host may take beside the device.
    """

    __slots__ = ("_observer", "_parts", "_stats", "_unlearned", "spare", "stopwatch")

    def __init__(self, observer: Observer, stats: EngineStats) -> None:
        self._observer = observer
        self._stats = stats
        self._parts: Iterator[int] = iter(())  # what is under way
        self._unlearned = 0  # cycles since the last part
        self.spare = SpareTime()
        self.stopwatch: Stopwatch = NO_STOPWATCH

    def catch_up(self) -> None:
        """Takes in all cycles so far; changed rows are drafted from the next one on."""
        self.stopwatch.mark("vocabulary")
        while self._go_on():
            pass
        self._parts = self._observer.learn()
        while self._go_on():
            pass
        self.stopwatch.mark("host")

    def meanwhile(self, *, read: bool) -> None:
        """The same, as far as there is time while the device is busy; a part now and then in any case.

        Args:
            read: whether the cycle under way drafts from the active rows.
        """
        self._unlearned += 1
        enough = 1 if read else _SELDOM
        began_anew = False
        while self.spare.seconds > 0 or self._unlearned >= _LATEST:
            self._unlearned = 0
            began = perf_counter()
            if not self._go_on():
                if began_anew or self._observer.cycles < enough:
                    return
                self._parts, began_anew = self._observer.learn(), True
            self.spare.took(perf_counter() - began)

    def _go_on(self) -> bool:
        """Learns for one part; returns whether there was one."""
        rows = next(self._parts, None)
        self._stats.vocabulary_rows_changed += rows or 0
        return rows is not None
