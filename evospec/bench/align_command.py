"""Runs a stream that drafters adapt to from start to files, with progress on standard error."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from evospec.bench.align_plots import write_align_plots
from evospec.bench.align_records import UpdateCosts
from evospec.bench.align_report import write_align_report
from evospec.bench.align_stream import AlignStream, AlignStreamSettings, Stay
from evospec.bench.command import make_folder
from evospec.bench.results import Results
from evospec.bench.update_memory import MemorySettings, measure_updates


def run_align_stream(settings: AlignStreamSettings, out: Path) -> Results:
    """Measures, and writes results.json, report.md and plots into `out`, after each stay at a topic too.

    Raises:
        EvoSpecError: bad settings, prompts or models, or a folder that can't be written.
    """
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    with console.status("loading models"):
        stream = AlignStream.load(settings)
    with console.status("warming up"):
        stream.warm_up()
    last: Stay | None = None
    started = time.perf_counter()
    for stay in stream.stream():
        if last is not None and stay.visit != last.visit:
            _save(stream, out)
        last = stay
        _tell(stream, stay, time.perf_counter() - started, console)
    _save(stream, out)
    for number, batch in enumerate(stream.report(), start=1):
        console.print(f"held out: {number} of {len(stream.held_out)} batches, {batch.domain}", markup=False)
    results = _save(stream, out)
    for run in results.runs:
        console.print(f"{run.domain:<12} {run.name:<32} τ {run.acceptance_length:.3f}", markup=False)
    for costs in results.updates:
        console.print(cost_line(costs), soft_wrap=True, markup=False)
    console.print(f"results.json, report.md and plots are in {escape(str(out))}", soft_wrap=True)
    return results


def run_memory(settings: MemorySettings, out: Path) -> Results:
    """Measures what updates take, and writes results.json, report.md and a plot into `out`.

    Raises:
        EvoSpecError: bad settings, or a folder that can't be written.
    """
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    results = measure_updates(
        settings, lambda costs: console.print(cost_line(costs), soft_wrap=True, markup=False)
    )
    results.write(out)
    write_align_report(results, write_align_plots(results, out), out)
    console.print(f"results.json, report.md and a plot are in {escape(str(out))}", soft_wrap=True)
    return results


def cost_line(costs: UpdateCosts) -> str:
    return (
        f"{costs.arm:<32} {costs.steps} steps of {costs.step_ms:.1f} ms, {costs.published} versions, "
        f"peak {costs.peak_mb:.1f} MB, held {costs.held_mb:.1f} MB"
    )


def _save(stream: AlignStream, out: Path) -> Results:
    results = stream.results()
    results.write(out)
    write_align_report(results, write_align_plots(results, out), out)
    return results


def _tell(stream: AlignStream, stay: Stay, seconds: float, console: Console) -> None:
    """A line per chunk: what each arm accepts now."""
    latest = {chunk.arm: chunk for chunk in stream.chunks[-len(stream.arms) :]}
    lengths = "  ".join(f"{arm} {chunk.acceptance_length:.2f}" for arm, chunk in latest.items())
    console.print(
        f"{seconds:6.0f} s  {stream.place:>4} of {stream.planned}  {stay.topic:<10} τ: {lengths}",
        markup=False,
        soft_wrap=True,
    )
