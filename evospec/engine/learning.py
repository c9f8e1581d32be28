"""When cycles are learned from: at once, or part by part beside the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter

from evospec.engine.observer import Observer
from evospec.engine.spare_time import SpareTime
from evospec.engine.stats import EngineStats
from evospec.stopwatch import NO_STOPWATCH, Stopwatch

_LATEST = 4  # cycles without learning, at most
_TOGETHER = 4  # cycles learned from at once where time is scarce: that takes hardly longer than one
_SELDOM = 16  # cycles learned from at once while drafts don't depend on it: many take little longer than one
_FADE = 0.8  # of the longest time that teaching took lately, at each further one
_BEHIND = 16  # cycles that may wait to be recorded; for each time as many, one more part comes with a cycle


class Learning:
    """Lets an observer work. Drafts wait for what the vocabulary learns, and for nothing else: that comes
    first, the rest when there is time.

    Attributes:
        stopwatch: shown what learning takes; no cycle overlaps the next while one watches.
        spare: what the host may take beside the device.
    """

    __slots__ = (
        "_longest",
        "_observer",
        "_offered",
        "_parts",
        "_recording",
        "_stats",
        "_unrecorded",
        "_untaught",
        "spare",
        "stopwatch",
    )

    def __init__(self, observer: Observer, stats: EngineStats) -> None:
        self._observer = observer
        self._stats = stats
        self._parts: Iterator[None] = iter(())  # what is being recorded
        self._recording = False  # whether there may be more of it
        self._untaught = self._unrecorded = 0  # cycles since the vocabulary learned, and the last part
        self._longest = 0.0  # seconds that it took lately
        self._offered = False  # whether tokens wait that an index found
        self.spare = SpareTime()
        self.stopwatch: Stopwatch = NO_STOPWATCH

    @property
    def behind(self) -> bool:
        """Whether anything is left to learn from."""
        return self._recording or self._observer.has_untaught or self._observer.has_unrecorded

    def go_on(self) -> None:
        """A part of what is left, while nothing runs: whoever comes meanwhile need not wait for all of it."""
        if self._observer.has_untaught:
            self._teach()
        else:
            self._record_part()

    def catch_up(self) -> None:
        """Takes in all cycles so far; changed rows are drafted from the next one on."""
        self.stopwatch.mark("vocabulary")
        self._teach()
        while self._record_part():
            pass
        self.stopwatch.mark("host")

    def offered(self) -> None:
        """An index has found tokens: there is more to take in than usual."""
        self._offered = True

    def fits(self, seconds: float) -> bool:
        """Whether the vocabulary is likely to have learned in so many seconds what there is."""
        unusual = self._offered or self._observer.has_untaught_prompts
        return not unusual and self._longest <= seconds

    def read_prompts(self) -> None:
        """Lets the vocabulary take in what admitted requests say themselves: it is known before the device
        has processed it, and the first drafts are made from it."""
        self._stats.vocabulary_rows_changed += self._observer.apply()

    def put_off(self, *, read: bool) -> None:
        """Lets a cycle pass without learning, unless it was put off too often."""
        if max(self._untaught, self._unrecorded) + 1 < _LATEST:
            self._untaught += 1
            self._unrecorded += 1
        else:
            self.teach_beside(read=read)
            self.record_beside()

    def teach_beside(self, *, read: bool) -> None:
        """Lets the vocabulary learn, if there is time while the device is busy; now and then in any case.

        Args:
            read: whether the cycle under way drafts from the active rows.
        """
        self._untaught += 1
        enough = _SELDOM
        if read:
            enough = _TOGETHER if self.spare.is_scarce else 1
        if self._observer.untaught >= enough and (self.spare.seconds > 0 or self._untaught >= _LATEST):
            began = perf_counter()
            self._paid(self._teach)
            self._longest = max(perf_counter() - began, _FADE * self._longest)

    def record_beside(self) -> None:
        """Lets all others learn, as far as there is time while the device is busy; a part now and then in
        any case."""
        self._unrecorded += 1
        due = self._observer.unrecorded // _BEHIND or int(self._unrecorded >= _LATEST)
        waits = self._recording or self._observer.has_unrecorded_prompts
        if self.spare.is_scarce and not (due or waits):
            return
        while self.spare.seconds > 0 or due > 0:
            due -= 1
            self._unrecorded = 0
            if not self._paid(self._record_part):
                return

    def _teach(self) -> bool:
        self._untaught, self._offered = 0, False
        self._stats.vocabulary_rows_changed += self._observer.teach()
        return True

    def _record_part(self) -> bool:
        """Returns whether there was one."""
        self._recording = next(self._parts, self) is not self
        if not self._recording:
            self._parts = self._observer.record()
            self._recording = next(self._parts, self) is not self
        return self._recording

    def _paid(self, work: Callable[[], bool]) -> bool:
        began = perf_counter()
        done = work()
        self.spare.took(perf_counter() - began)
        return done
