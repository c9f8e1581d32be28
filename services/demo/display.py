"""The demo's progress: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_PERIOD_S = 10.0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica now; rates over the last seconds."""

    name: str
    tokens_per_s: float | None
    acceptance_length: float | None
    active_rows: int
    adapter_version: int
    running: int


@dataclass(frozen=True, slots=True)
class View:
    """All that is shown at one moment."""

    elapsed_s: float
    doing: str
    done: int
    failed: int
    total: int
    replicas: list[ReplicaView]
    rolled_out: int


class Display(Protocol):
    def show(self, view: View) -> None: ...


class LiveDisplay:
    """Redraws in place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, view: View) -> None:
        self._live.update(_render(view), refresh=True)


class LineDisplay:
    """Prints a line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed_s = -LINE_PERIOD_S

    def show(self, view: View) -> None:
        if view.elapsed_s - self._printed_s < LINE_PERIOD_S:
            return
        self._printed_s = view.elapsed_s
        self._console.print(_line(view), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """What fits the console, until the context ends."""
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveDisplay(live)


def _render(view: View) -> Group:
    table = Table("replica", box=None, padding=(0, 2))
    for heading in ("tokens/s", "acceptance length", "active rows", "adapter version", "requests"):
        table.add_column(heading, justify="right")
    for replica in view.replicas:
        table.add_row(
            replica.name,
            _number(replica.tokens_per_s, ".1f"),
            _number(replica.acceptance_length, ".2f"),
            f"{replica.active_rows:,}",
            str(replica.adapter_version),
            str(replica.running),
        )
    state = Text(f"{view.elapsed_s:5.0f} s  {view.doing}: {view.done} of {view.total} requests done")
    if view.failed:
        state.append(f", {view.failed} failed", style="bold red")
    state.append(f"; {view.rolled_out} adapter versions rolled out")
    return Group(state, ProgressBar(total=view.total, completed=view.done, width=60), table)


def _line(view: View) -> str:
    replicas = "; ".join(
        f"{replica.name}: {_number(replica.tokens_per_s, '.1f')} tokens/s, "
        f"τ {_number(replica.acceptance_length, '.2f')}, {replica.active_rows:,} rows, "
        f"v{replica.adapter_version}"
        for replica in view.replicas
    )
    failed = f", {view.failed} failed" if view.failed else ""
    return f"{view.elapsed_s:5.0f} s  {view.doing}  {view.done}/{view.total} requests{failed}  [{replicas}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
