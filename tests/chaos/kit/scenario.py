"""Something goes wrong under load: the frame of every test of this tier."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.chaos.kit.load import Load
from tests.chaos.kit.record import ScenarioRecord, publish
from tests.chaos.kit.tally import Tally

FLOWING = 6  # requests that must be complete before something goes wrong, and after it is over


@dataclass(slots=True)
class Scenario:
    """Keeps requests coming from before the fault until after it, and sums up what became of them.

    As a context manager it yields itself with traffic flowing. At its end it records what was
    seen, and fails the test when a token was wrong or a request lost.

    Attributes:
        part, title: heading and name in the report.
        harmless: the fault may fail no request and have none retried.
        cuts: it may cut clients' connections, so that an answer can end without an error.
        notes: remarks for the report.
    """

    part: str
    title: str
    load: Load
    harmless: bool = False
    cuts: bool = False
    notes: list[str] = field(default_factory=list)
    recovery_s: float | None = None
    recovery: str = ""
    bar_s: float | None = None
    _started_s: float = 0.0

    def __enter__(self) -> Scenario:
        self.load.start()
        self.load.served(FLOWING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.load.served(FLOWING)
        tally = self.load.stop()
        if error is None:
            publish(self._record(tally))
            self._check(tally)

    def start_clock(self) -> None:
        """The time to recover counts from now."""
        self._started_s = time.monotonic()

    def recovered(self, what: str) -> None:
        """It ends now; `what` says from when until when it counts."""
        self.took(time.monotonic() - self._started_s, what)

    def took(self, seconds: float, what: str, *, bar_s: float | None = None) -> None:
        """As `recovered`, with a time measured elsewhere, and what it may be at most."""
        self.recovery_s, self.recovery, self.bar_s = seconds, what, bar_s

    def _record(self, tally: Tally) -> ScenarioRecord:
        return ScenarioRecord(
            part=self.part,
            scenario=self.title,
            sent=tally.sent,
            failed=tally.failed,
            lost=tally.lost,
            retried=dict(sorted(tally.retried.items())),
            compared=tally.compared,
            wrong=tally.wrong,
            took=self.recovery_s,
            what=self.recovery,
            bar=self.bar_s,
            notes=tuple(self.notes),
        )

    def _check(self, tally: Tally) -> None:
        assert tally.wrong == 0, tally.examples
        assert tally.lost == 0, tally.examples
        if self.harmless:
            assert (tally.failed, tally.retried) == (0, {}), tally.examples
        if not self.cuts:
            assert tally.untold == 0, tally.examples
