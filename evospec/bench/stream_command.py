"""Runs a stream bench from start to files, with progress on standard error."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from evospec.bench.command import learn, make_folder, run_line, shown_turns
from evospec.bench.results import Results
from evospec.bench.stream import StreamBench, StreamSettings
from evospec.bench.stream_plots import write_stream_plots
from evospec.bench.stream_records import AfterSwitch
from evospec.bench.stream_report import write_stream_report


def run_stream(settings: StreamSettings, out: Path) -> Results:
    """Measures, writes results.json, report.md and plots into `out`, and prints a summary.

    Raises:
        EvoSpecError: bad settings, prompts or models, or a folder that can't be written.
    """
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    with console.status("loading models"):
        stream = StreamBench.load(settings)
    bench = stream.bench
    if bench.skipped:
        console.print(f"{bench.skipped} prompts are too long for the models and are left out")
    with console.status("warming up, and measuring the copy bandwidth"):
        bench.warm_up()
    learn(bench, console)
    turns = list(shown_turns(bench.turns(), bench.turn_count, console))
    with console.status("checking outputs"):
        results, found = stream.results(turns)
    results.write(out)
    write_stream_report(results, found, write_stream_plots(results, found, out), out)
    for run in results.runs:
        console.print(run_line(run), soft_wrap=True)
    for arm in found.arms:
        console.print(_line(arm), soft_wrap=True)
    console.print(f"results.json, report.md and plots are in {escape(str(out))}", soft_wrap=True)
    return results


def _line(arm: AfterSwitch) -> str:
    after = (
        "not recovered" if arm.recovered_after is None else f"recovered after {arm.recovered_after} tokens"
    )
    return f"{escape(arm.arm):<26} {after}, {arm.switches} switches"
