"""Plots of a load run: how latencies are spread, and what happened when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy
from services.load.over_time import bin_edges, tokens_per_s, under_way
from services.load.results import LoadRequest, LoadResults

_FAILED = COLOURS[7]
Value = Callable[[LoadRequest], float | None]


def write_plots(results: LoadResults, folder: Path) -> list[Path]:
    """Returns the files; none when nothing was answered."""
    if not any(not request.failed for request in results.requests):
        return []
    return [_spread(results, folder / "latency.png"), _timeline(results, folder / "timeline.png")]


def _title(results: LoadResults) -> str:
    settings = results.settings
    load = (
        f"{settings['concurrency']} at a time"
        if settings["loop"] == "closed"
        else f"{settings['rate']:g} requests/s, Poisson"
    )
    return f"{settings['model']}, {load}, {results.total.requests} requests"


def _spread(results: LoadResults, path: Path) -> Path:
    """Cumulative distributions, all domains in black where there are several."""
    panels: list[tuple[str, Value]] = [("End to end (ms)", lambda request: request.latency_ms)]
    if results.settings["stream"]:
        panels = [
            ("Time to first token (ms)", lambda request: request.ttft_ms),
            ("Time per further token (ms)", lambda request: request.token_ms),
            *panels,
        ]
    figure = new_figure(3.6 * len(panels) + 0.6, 4.2)
    several = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, value) in zip(several, panels, strict=True):
        domains = _domains(results.requests)
        for number, domain in enumerate(domains):
            own = [request for request in results.requests if request.domain == domain]
            _steps(axes, own, value, COLOURS[number % len(COLOURS)], domain)
        if len(domains) > 1:
            _steps(axes, results.requests, value, "black", "all")
        for share in (0.5, 0.9, 0.99):
            axes.axhline(share, color=NEUTRAL, linewidth=0.8, linestyle=":")
        axes.set_xlabel(name)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.02)
        tidy(axes)
    several[0].set_ylabel("Share of the answered requests")
    several[0].set_yticks([0, 0.25, 0.5, 0.75, 0.9, 0.99], ["0", "25 %", "50 %", "75 %", "90 %", "99 %"])
    figure.suptitle(_title(results), fontsize=10)
    legend_below(figure, 6)
    return save(figure, path)


def _steps(axes: Axes, requests: Sequence[LoadRequest], value: Value, colour: str, label: str) -> None:
    found = [value(request) for request in requests if not request.failed]
    known = np.sort([each for each in found if each is not None])
    if known.size:
        heights = np.arange(known.size + 1) / known.size
        axes.step(
            np.concatenate([known[:1], known]),
            heights,
            where="post",
            color=colour,
            linewidth=1.5,
            label=label,
        )


def _timeline(results: LoadResults, path: Path) -> Path:
    drafted = any(request.cycles for request in results.requests)
    figure = new_figure(10.0, 7.6 if drafted else 5.6)
    latency, speed, *rest = figure.subplots(3 if drafted else 2, 1, sharex=True)
    _scatter(latency, results.requests, lambda request: request.latency_ms / 1e3)
    failed = [request for request in results.requests if request.failed]
    if failed:
        latency.scatter(
            [request.due_s for request in failed],
            [request.latency_ms / 1e3 for request in failed],
            color=_FAILED,
            marker="x",
            s=26,
            label="failed",
        )
    latency.set_ylabel("End to end (s)")
    latency.set_ylim(bottom=0)
    _speed(speed, results.requests)
    for axes in rest:
        _scatter(axes, results.requests, lambda request: request.acceptance_length)
        axes.set_ylabel("τ, tokens per cycle")
    for axes in (latency, speed, *rest):
        tidy(axes)
    (rest[-1] if rest else speed).set_xlabel("Seconds since the first request was due")
    figure.suptitle(_title(results), fontsize=10)
    legend_below(figure, 6)
    return save(figure, path)


def _scatter(axes: Axes, requests: Sequence[LoadRequest], value: Value) -> None:
    for number, domain in enumerate(_domains(requests)):
        own = [request for request in requests if request.domain == domain and not request.failed]
        points = [(request.due_s, found) for request in own if (found := value(request)) is not None]
        axes.scatter(
            [at for at, _ in points],
            [height for _, height in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            s=18,
            alpha=0.8,
            label=domain,
        )


def _speed(axes: Axes, requests: Sequence[LoadRequest]) -> None:
    edges = bin_edges(requests)
    axes.stairs(
        tokens_per_s(requests, edges), edges, color="black", linewidth=1.5, label="tokens/s, all requests"
    )
    axes.set_ylabel("Tokens per second")
    axes.set_ylim(bottom=0)
    busy = axes.twinx()
    busy.stairs(
        under_way(requests, edges),
        edges,
        color=NEUTRAL,
        linewidth=1.3,
        linestyle="--",
        label="requests under way",
    )
    busy.set_ylabel("Requests under way", color=NEUTRAL)
    busy.set_ylim(bottom=0)
    busy.spines["top"].set_visible(False)


def _domains(requests: Sequence[LoadRequest]) -> list[str]:
    return list(dict.fromkeys(request.domain for request in requests))
