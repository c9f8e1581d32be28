"""Plots of a demo: acceptance length, active rows and speed over time, and round against round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy
from services.demo.results import DemoResults, DemoRun, RequestRecord
from services.demo.timeline import Rate

_BAND = "#F1F1F1"
_WIDTH, _HEIGHT = 10.5, 4.0  # inches


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one topic, by the starts of its requests."""

    topic: str
    start_s: float
    end_s: float


def write_plots(results: DemoResults, rates: Sequence[Rate], folder: Path) -> list[Path]:
    """Writes all plots; returns their files.

    Args:
        rates: of all replicas together, over a sliding window.
    """
    written = [
        _acceptance(results, rates, folder / "acceptance_over_time.png"),
        _rows(results, folder / "active_rows_over_time.png"),
        _speed(results, rates, folder / "speed_over_time.png"),
    ]
    if results.runs:  # none when every request failed
        written.append(_rounds(results.runs, folder / "rounds.png"))
    return written


def segments(requests: Sequence[RequestRecord]) -> list[Segment]:
    """Topics in the order in which they were asked about; each lasts until the next begins."""
    starts: list[tuple[str, int, float]] = []
    for record in sorted(requests, key=lambda record: record.started_s):
        if not starts or starts[-1][:2] != (record.topic, record.round):
            starts.append((record.topic, record.round, record.started_s))
    ends = [start for _, _, start in starts[1:]] + [max(record.finished_s for record in requests)]
    return [Segment(topic, start, end) for (topic, _, start), end in zip(starts, ends, strict=True)]


def _acceptance(results: DemoResults, rates: Sequence[Rate], path: Path) -> Path:
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    topics = _topics(results)
    for number, topic in enumerate(topics):
        own = [record for record in results.requests if record.topic == topic and not record.failed]
        axes.scatter(
            [record.finished_s for record in own],
            [record.acceptance_length for record in own],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            s=22,
            alpha=0.75,
            label=topic,
        )
    drafted = [rate for rate in rates if rate.acceptance_length is not None]
    axes.plot(
        [rate.time_s for rate in drafted],
        [rate.acceptance_length or 0.0 for rate in drafted],
        color="black",
        linewidth=1.6,
        label=f"all replicas, {_window(results)}",
    )
    axes.set_ylabel("Acceptance length τ (tokens per cycle)")
    _leave_room(axes, bottom=0.95)
    _finish(axes, results)
    legend_below(figure, min(len(topics) + 1, 5))
    return save(figure, path)


def _rows(results: DemoResults, path: Path) -> Path:
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    names = sorted({sample.replica for point in results.timeline for sample in point.replicas})
    for number, name in enumerate(names):
        points = [
            (point.time_s, sample.active_rows)
            for point in results.timeline
            for sample in point.replicas
            if sample.replica == name
        ]
        axes.plot(
            [time_s for time_s, _ in points],
            [rows for _, rows in points],
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--", "-.", ":")[number % 4],
            linewidth=1.8,
            label=name,
        )
    axes.set_ylabel("Active rows of the LM head")
    _leave_room(axes, bottom=0.0)
    _finish(axes, results)
    legend_below(figure, min(len(names), 6))
    return save(figure, path)


def _speed(results: DemoResults, rates: Sequence[Rate], path: Path) -> Path:
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    axes.plot(
        [rate.time_s for rate in rates],
        [rate.tokens_per_s for rate in rates],
        color=COLOURS[0],
        linewidth=1.8,
        label=f"all replicas together, {_window(results)}",
    )
    axes.set_ylabel("Tokens per second")
    _leave_room(axes, bottom=0.0)
    _finish(axes, results)
    legend_below(figure, 1)
    return save(figure, path)


def _leave_room(axes: Axes, bottom: float) -> None:
    """Room above the data, for the marks' labels."""
    top = axes.get_ylim()[1]
    axes.set_ylim(bottom, top + 0.12 * (top - bottom))


def _finish(axes: Axes, results: DemoResults) -> None:
    """Time axis, topic bands with their names above the plot, and a mark per version."""
    stretches = segments(results.requests)
    for number, segment in enumerate(stretches):
        if number % 2 == 0:
            axes.axvspan(segment.start_s, segment.end_s, color=_BAND, zorder=0)
        axes.text(
            (segment.start_s + segment.end_s) / 2,
            1.02,
            segment.topic,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
        )
    for rollout in results.rollouts:
        axes.axvline(rollout.time_s, color=NEUTRAL, linestyle="--", linewidth=1.1)
        axes.annotate(
            f"v{rollout.version}",
            (rollout.time_s, 0.98),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )
    last = max(stretches[-1].end_s, max((rollout.time_s for rollout in results.rollouts), default=0.0))
    axes.set_xlim(0, last * 1.01)
    axes.set_xlabel("Seconds since the first request (dashed: adapter version on all replicas)")
    tidy(axes)


def _rounds(runs: Sequence[DemoRun], path: Path) -> Path:
    topics = list(dict.fromkeys(run.domain for run in runs))
    rounds = sorted({run.round for run in runs})
    figure = new_figure(7.0, _HEIGHT)
    axes = figure.subplots()
    width = 0.8 / len(rounds)
    for number, round_ in enumerate(rounds):
        own = {run.domain: run.acceptance_length for run in runs if run.round == round_}
        places = [topics.index(topic) + (number - (len(rounds) - 1) / 2) * width for topic in own]
        bars = axes.bar(
            places, list(own.values()), width * 0.94, color=COLOURS[number], label=f"round {round_}"
        )
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8.5)
    axes.set_xticks(range(len(topics)), topics)
    axes.set_ylabel("Acceptance length τ (tokens per cycle)")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
    tidy(axes)
    legend_below(figure, len(rounds))
    return save(figure, path)


def _window(results: DemoResults) -> str:
    return f"last {results.settings['window_s']:g} s"


def _topics(results: DemoResults) -> list[str]:
    return list(dict.fromkeys(record.topic for record in results.requests))
