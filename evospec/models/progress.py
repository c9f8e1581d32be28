"""Progress of long work on models: bars on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

# Tells a step how many bytes are done by now.
Report = Callable[[int], None]


class Progress(Protocol):
    """Shows the steps of a long operation, one after the other."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Report]:
        """Shows a step until the context ends; `total` is in bytes, None when there is nothing to count."""
        ...


class BarProgress:
    """One bar a step, or a spinner where there is nothing to count."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Report]:
        counted = (BarColumn(), DownloadColumn(), TransferSpeedColumn()) if total else (SpinnerColumn(),)
        columns = (TextColumn("{task.description}"), *counted, TimeElapsedColumn())
        with RichProgress(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)
            bars.update(task, total=total or 1, completed=total or 1)


class LineProgress:
    """A line when a step begins, at each quarter of what is counted, and when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Report]:
        started = time.monotonic()
        shown = 0

        def report(done: int) -> None:
            nonlocal shown
            quarter = min(4 * done // total, 3) if total else 0
            if quarter > shown:
                shown = quarter
                self._print(f"{title}: {25 * quarter} %")

        self._print(f"{title} ...")
        yield report
        self._print(f"{title}: done in {time.monotonic() - started:.1f} s")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def console_progress() -> Progress:
    """What fits the standard error stream."""
    console = Console(file=sys.stderr)  # bound now: others may redirect sys.stderr while a step runs
    return BarProgress(console) if console.is_terminal else LineProgress(console)
