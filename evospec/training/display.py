"""Training as it runs: a few lines that are redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evospec.training.curve import short_count
from evospec.training.progress import Progress
from evospec.training.provenance import TrainingResult

LINE_S = 10.0
_REDRAWN_S = 0.25
_BAR_WIDTH = 40

Report = Callable[[Progress], None]


@contextmanager
def show_training(console: Console) -> Iterator[Report]:
    """Gives the function that shows progress."""
    if not console.is_terminal:
        yield _lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        due = _Due(_REDRAWN_S)

        def redraw(progress: Progress) -> None:
            if due.now():
                live.update(render(progress), refresh=True)

        yield redraw


def render(progress: Progress) -> Group:
    """Three lines, each at most 80 columns wide."""
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=min(progress.share, 1.0), width=_BAR_WIDTH)
    head.add_row("training", bar, f"{progress.share:4.0%}", f"{clock(progress.remaining_s)} left")
    return Group(head, Text(_work(progress)), Text(_quality(progress)))


def describe(progress: Progress) -> str:
    """The same in one line."""
    return (
        f"training: {progress.share:.0%}  {_work(progress)}  {_quality(progress)}  "
        f"{clock(progress.remaining_s)} left"
    )


def summary(result: TrainingResult, folder: str) -> Table:
    """What came out, at most 80 columns wide."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("acceptance length", _acceptance(result))
    if result.acceptance_by_step:
        table.add_row("accepted to step", _rates(result.acceptance_by_step))
    if result.last_doubling is not None and result.half_way is not None:
        half = short_count(result.half_way.tokens)
        table.add_row(
            "last doubling",
            f"{result.last_doubling:+.2f} from {half} to {short_count(result.trained_tokens)} tokens",
        )
    peak = "" if result.peak_share is None else f", {result.peak_share:.1%} of the device's bf16 peak"
    table.add_row(
        "trained on",
        f"{short_count(result.trained_tokens)} tokens in {result.optimizer_steps:,} steps, "
        f"{result.minutes:.1f} min, {result.tokens_per_s:,.0f} tokens/s{peak}",
    )
    table.add_row("drafter", f"{folder} (use it with --drafter {folder})")
    return table


def clock(seconds: float) -> str:
    """65 seconds as 1:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _acceptance(result: TrainingResult) -> str:
    if result.acceptance_length is None:
        return "not measured: the corpus is too small to hold anything out"
    kind = "conversations" if result.held_out_kind == "on-policy" else "documents"
    return (
        f"{result.acceptance_length:.2f} tokens per cycle on {result.held_out} held-out {kind} "
        "(1.00 is plain decoding)"
    )


def _work(progress: Progress) -> str:
    return (
        f"step {progress.step:,}  loss {progress.loss:.3f}  {short_count(progress.tokens)} tokens  "
        f"{progress.tokens_per_s:,.0f} tokens/s"
    )


def _quality(progress: Progress) -> str:
    held_out = "" if progress.held_out is None else f"  held out τ {progress.held_out:.2f}"
    return f"accuracy {_rates(progress.accuracy)}{held_out}"


def _rates(values: tuple[float, ...]) -> str:
    # Beyond eight draft steps, every second one: the line stays readable.
    shown = values if len(values) <= 8 else values[::2]
    return " ".join(f"{value:.2f}" for value in shown)


def _lines(console: Console) -> Report:
    due = _Due(LINE_S)

    def report(progress: Progress) -> None:
        if due.now():
            console.print(describe(progress), highlight=False, markup=False, soft_wrap=True)

    return report


class _Due:
    """Whether it is time to show something again."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._shown = -every_s

    def now(self) -> bool:
        if monotonic() - self._shown < self._every_s:
            return False
        self._shown = monotonic()
        return True
