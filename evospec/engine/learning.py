"""When cycles are learned from: at once, or part by part beside the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter

from evospec.engine.observer import Observer
from evospec.engine.spare_time import SpareTime
from evospec.engine.stats import EngineStats
from evospec.stopwatch import NO_STOPWATCH, Stopwatch

_LATEST = 4  # cycles without learning, at most
_SELDOM = 16  # cycles learned from at once while drafts don't depend on it: many take little longer than one
_BEHIND = 16  # cycles that may wait to be recorded; for each time as many, one more part comes with a cycle


class Learning:
    """Lets an observer work. Drafts wait for what the vocabulary learns, and for nothing else: that comes
    first, the rest when there is time.

    Attributes:
        stopwatch: shown what learning takes; no cycle overlaps the next while one watches.
        spare: what the host may take beside the device.
    """

    __slots__ = ("_observer", "_parts", "_stats", "_unrecorded", "_untaught", "spare", "stopwatch")

    def __init__(self, observer: Observer, stats: EngineStats) -> None:
        self._observer = observer
        self._stats = stats
        self._parts: Iterator[None] = iter(())  # what is being recorded
        self._untaught = self._unrecorded = 0  # cycles since the vocabulary learned, and the last part
        self.spare = SpareTime()
        self.stopwatch: Stopwatch = NO_STOPWATCH

    def catch_up(self) -> None:
        """Takes in all cycles so far; changed rows are drafted from the next one on."""
        self.stopwatch.mark("vocabulary")
        self._teach()
        for _ in self._parts:
            pass
        self._parts = self._observer.record()
        for _ in self._parts:
            pass
        self.stopwatch.mark("host")

    def meanwhile(self, *, read: bool) -> None:
        """The same, as far as there is time while the device is busy; a part now and then in any case.

        Args:
            read: whether the cycle under way drafts from the active rows.
        """
        self._untaught += 1
        self._unrecorded += 1
        enough = 1 if read else _SELDOM
        if self._observer.untaught >= enough and (self.spare.seconds > 0 or self._untaught >= _LATEST):
            self._paid(self._teach)
        due = self._observer.unrecorded // _BEHIND or int(self._unrecorded >= _LATEST)
        while self.spare.seconds > 0 or due > 0:
            due -= 1
            self._unrecorded = 0
            if not self._paid(self._go_on):
                return

    def _teach(self) -> bool:
        self._untaught = 0
        self._stats.vocabulary_rows_changed += self._observer.teach()
        return True

    def _go_on(self) -> bool:
        """Records one part; returns whether there was one."""
        if next(self._parts, self) is not self:
            return True
        self._parts = self._observer.record()
        return next(self._parts, self) is not self

    def _paid(self, work: Callable[[], bool]) -> bool:
        began = perf_counter()
        done = work()
        self.spare.took(perf_counter() - began)
        return done
