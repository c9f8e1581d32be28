"""Runs a decode bench from start to files, with progress on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evospec.bench.decode import DecodeBench, load_models
from evospec.bench.measure import Turn
from evospec.bench.plots import write_plots
from evospec.bench.report import write_report
from evospec.bench.results import Results, Run
from evospec.bench.settings import DecodeSettings
from evospec.errors import EvoSpecError
from evospec.heap import release_heap


def run_decode(settings: DecodeSettings, out: Path) -> Results:
    """Measures, writes results.json, report.md and plots into `out`, and prints a summary.

    Raises:
        EvoSpecError: bad settings, prompts or models, or a folder that can't be written.
    """
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    with console.status("loading models"):
        models = load_models(settings)
    parts = []
    for batch in (settings.batch, *settings.more_batches):
        parts.append(_measured(DecodeBench.of(replace(settings, batch=batch), models), console))
        release_heap()  # engines hold device memory, and refer to themselves
    results = Results.joined(parts)
    results.write(out)
    write_report(results, write_plots(results, out), out)
    for run in results.runs:
        console.print(run_line(run), soft_wrap=True)
    console.print(f"results.json, report.md and plots are in {escape(str(out))}", soft_wrap=True)
    return results


def _measured(bench: DecodeBench, console: Console) -> Results:
    if bench.skipped:
        console.print(f"{bench.skipped} prompts are too long for the models and are left out")
    with console.status("warming up, and measuring the copy bandwidth"):
        bench.warm_up()
    learn(bench, console)
    turns = list(shown_turns(bench.turns(), bench.turn_count, console))
    if bench.settings.profile:
        with console.status("breaking cycles down"):
            bench.profile()
    with console.status("checking outputs"):
        return bench.results(turns)


def learn(bench: DecodeBench, console: Console) -> None:
    """Lets learning policies decode their lessons."""
    for _ in shown_turns(bench.learn(), len(bench.lessons) * len(bench.learners), console):
        pass


def make_folder(folder: Path) -> None:
    """Raises EvoSpecError when it can't be made: better before the work than after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvoSpecError(f"cannot write into {folder}: {error.strerror}; choose another --out") from None


def shown_turns(turns: Iterator[Turn], count: int, console: Console) -> Iterator[Turn]:
    """Passes turns on, with a bar on a terminal and a line at each tenth elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("decoding", total=count)
        for number, turn in enumerate(turns, start=1):
            bars.update(task, completed=number, description=f"{turn.batch.domain}, {turn.arm}")
            if not console.is_terminal and number * 10 // count > (number - 1) * 10 // count:
                console.print(f"{number} of {count} turns decoded", markup=False)
            yield turn


def run_line(run: Run) -> str:
    """For the terminal, in rich's markup."""
    name = f"{run.batch:>4} {escape(run.domain):<12} {escape(run.name):<26}"
    if run.failed:
        return f"{name} [bold red]FAILED[/]: {escape(run.failure or '')}"
    return (
        f"{name} {run.tokens_per_s:7.1f} tokens/s  {run.speedup or 0.0:5.2f} of plain  "
        f"τ {run.tokens_per_cycle or 1.0:.2f}  {run.cycle_ms or 0.0:8.2f} ms a cycle"
    )
