"""Plots of a stream that drafters adapted to: gain along it, held-out gains, and what updates cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes

from evospec.bench.align_arms import NONE
from evospec.bench.align_records import StreamChunk, UpdateCosts
from evospec.bench.align_summary import WINDOW, pooled
from evospec.bench.results import Results, Run
from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy

_LEGEND_INCHES = 0.25  # for each arm: names with options are long
_BANDS = ("#F2F2F2", "#FFFFFF")


def write_align_plots(results: Results, folder: Path) -> list[Path]:
    """Returns the files; only those there is data for."""
    written = []
    found = results.alignment
    if found is not None and found.chunks:
        written.append(_along(found.chunks, folder / "along.png"))
    if results.runs:
        written.append(_held_out(results.runs, folder / "held_out.png"))
    if results.updates:
        written.append(_costs(results.updates, folder / "updates.png"))
    return written


def _along(chunks: Sequence[StreamChunk], path: Path) -> Path:
    """τ of each arm over the latest requests of each visit."""
    names = list(dict.fromkeys(chunk.arm for chunk in chunks))
    figure = new_figure(11.0, 4.0 + _LEGEND_INCHES * len(names))
    axes = figure.subplots()
    for number, name in enumerate(names):
        own = [chunk for chunk in chunks if chunk.arm == name]
        for place, (_, members) in enumerate(groupby(own, key=lambda chunk: chunk.visit)):
            ends, lengths = _smoothed(list(members))
            axes.plot(
                ends,
                lengths,
                color=NEUTRAL if name == NONE else COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=3.5,
                linewidth=1.3,
                label=name if place == 0 else "",
            )
    _name_visits(axes, [chunk for chunk in chunks if chunk.arm == names[0]])
    axes.set_xlabel("Requests of the stream")
    axes.set_ylabel(f"τ of the latest {WINDOW} requests of the visit")
    tidy(axes)
    legend_below(figure, 4)
    return save(figure, path)


def _smoothed(visit: Sequence[StreamChunk]) -> tuple[list[int], list[float]]:
    ends, lengths = [], []
    for last in range(1, len(visit) + 1):
        first = last - 1
        while first and sum(chunk.requests for chunk in visit[first:last]) < WINDOW:
            first -= 1
        ends.append(visit[last - 1].place + visit[last - 1].requests)
        lengths.append(pooled(visit[first:last]))
    return ends, lengths


def _name_visits(axes: Axes, chunks: Sequence[StreamChunk]) -> None:
    for visit, group in groupby(chunks, key=lambda chunk: chunk.visit):
        members = list(group)
        start, end = members[0].place, members[-1].place + members[-1].requests
        axes.axvspan(start, end, color=_BANDS[visit % 2], zorder=0, linewidth=0)
        axes.annotate(
            members[0].topic,
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _held_out(runs: Sequence[Run], path: Path) -> Path:
    domains = list(dict.fromkeys(run.domain for run in runs))
    names = list(dict.fromkeys(run.name for run in runs))
    figure = new_figure(max(6.0, 1.0 + 0.5 * len(domains) * len(names)), 3.8 + _LEGEND_INCHES * len(names))
    axes = figure.subplots()
    width = 0.86 / len(names)
    for number, name in enumerate(names):
        own = {run.domain: run.acceptance_length for run in runs if run.name == name}
        places = [domains.index(domain) + (number - (len(names) - 1) / 2) * width for domain in own]
        colour = NEUTRAL if name == NONE else COLOURS[number % len(COLOURS)]
        bars = axes.bar(places, list(own.values()), width * 0.92, color=colour, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_ylim(bottom=1.0)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("τ on held-out prompts")
    tidy(axes)
    legend_below(figure, 4)
    return save(figure, path)


def _costs(costs: Sequence[UpdateCosts], path: Path) -> Path:
    names = [one.arm for one in costs]
    figure = new_figure(max(7.0, 1.5 * len(names)), 5.0)
    memory, seconds = figure.subplots(1, 2)
    places = range(len(names))
    memory.bar(places, [one.peak_mb for one in costs], color=COLOURS[0], label="peak")
    memory.bar(places, [one.held_mb for one in costs], width=0.5, color=COLOURS[4], label="held")
    memory.set_ylabel("Extra memory, MB")
    seconds.bar(places, [one.step_ms for one in costs], color=COLOURS[1], label="step")
    seconds.set_ylabel("Milliseconds a step")
    for axes in (memory, seconds):
        axes.set_xticks(list(places), [_broken(name) for name in names], rotation=20, ha="right", fontsize=7)
        tidy(axes)
    legend_below(figure, 3)
    return save(figure, path)


def _broken(name: str) -> str:
    """In lines of some options each."""
    parts = name.split(":")
    return "\n".join(":".join(parts[first : first + 2]) for first in range(0, len(parts), 2))
