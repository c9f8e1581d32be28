"""Runs an overhead bench from start to files, with progress on standard error."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from evospec.bench.command import make_folder
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.prompts import read_prompts
from services.interrupts import interrupt_once
from services.load.overhead import OverheadBench, OverheadSettings, row
from services.load.overhead_results import OverheadResults, line
from services.local_cluster import LocalCluster


def run_overhead(settings: OverheadSettings, out: Path) -> OverheadResults:
    """Starts a server, measures, writes results.json, report.md and a plot into `out`.

    Raises:
        EvoSpecError: bad prompts or models, the server does not start or fails a request, or a folder
            that can't be written.
    """
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    interrupt_once()
    prompts = read_prompts(settings.prompts)
    console.print("starting a server ...")
    rows = []
    with LocalCluster(settings.config()) as cluster:
        interrupt_once()  # Ray put a handler of its own in place
        bench = OverheadBench(settings, cluster, prompts)
        for streams in settings.streams:
            found = row(streams, list(bench.pairs(streams)))
            console.print(line(found), markup=False, soft_wrap=True)
            rows.append(found)
    results = OverheadResults(
        schema=1,
        machine=describe_machine(),
        git=git_commit(),
        settings=settings.described(),
        rows=tuple(rows),
    )
    results.write(out)
    console.print(f"results.json, report.md and the plot are in {escape(str(out))}", soft_wrap=True)
    return results
