"""Plots of a stream bench: coverage and τ along the stream, and coverage after switches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from evospec.bench.results import Results
from evospec.bench.stream_records import Stream, StreamRequest
from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy

_BANDS = ("#F2F2F2", "#FFFFFF")
_INCHES_PER_REQUEST = 0.28
_MOST_INCHES = 14.0


def write_stream_plots(results: Results, stream: Stream, folder: Path) -> list[Path]:
    """Returns the files; only those there is data for."""
    device = results.machine.gpu if results.settings["device"] == "cuda" else results.machine.cpu
    title = f"{results.runs[0].target}, {results.settings['dtype']}, {device}"
    written = [_timeline(stream, title, folder / "stream.png")] if stream.requests else []
    if any(arm.buckets for arm in stream.arms):
        written.append(_after_switch(stream, title, folder / "after_switch.png"))
    return written


def _timeline(stream: Stream, title: str, path: Path) -> Path:
    places = 1 + max(request.place for request in stream.requests)
    figure = new_figure(min(_MOST_INCHES, max(8.0, 1.5 + _INCHES_PER_REQUEST * places)), 6.0)
    coverage, length = figure.subplots(2, 1, sharex=True)
    _draw_stream(coverage, stream, lambda request: request.coverage)
    _draw_stream(length, stream, lambda request: request.acceptance_length)
    coverage.axhline(stream.recovered, color=NEUTRAL, linestyle="--", linewidth=1.2, label=_goal(stream))
    coverage.set_ylabel("Coverage of the request")
    length.set_ylabel("τ, tokens per draft")
    length.set_xlabel("Request of the stream")
    length.xaxis.set_major_locator(MaxNLocator(integer=True))
    length.set_xlim(0.5, places + 0.5)
    _name_topics(coverage, stream.requests)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, 4)
    return save(figure, path)


def _draw_stream(axes: Axes, stream: Stream, value: Callable[[StreamRequest], float | None]) -> None:
    """One line per arm, broken where the topic changes."""
    for number, arm in enumerate(stream.arms):
        own = [request for request in stream.requests if request.arm == arm.arm]
        for place, (_, members) in enumerate(groupby(own, key=_visit)):
            shown = [
                (request.place + 1, found) for request in members if (found := value(request)) is not None
            ]
            axes.plot(
                [at for at, _ in shown],
                [height for _, height in shown],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.5,
                linewidth=1.4,
                label=arm.arm if place == 0 else "",
            )
    first_arm = [request for request in stream.requests if request.arm == stream.arms[0].arm]
    for number, (_, members) in enumerate(groupby(first_arm, key=_visit)):
        shown_places = [request.place for request in members]
        axes.axvspan(
            shown_places[0] + 0.5, shown_places[-1] + 1.5, color=_BANDS[number % 2], zorder=0, linewidth=0
        )
    tidy(axes)


def _name_topics(axes: Axes, requests: Sequence[StreamRequest]) -> None:
    """Above the bands."""
    first_arm = [request for request in requests if request.arm == requests[0].arm]
    for (topic, _), members in groupby(first_arm, key=_visit):
        places = [request.place + 1 for request in members]
        axes.annotate(
            topic,
            ((places[0] + places[-1]) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _visit(request: StreamRequest) -> tuple[str, int]:
    """Equal for requests between two switches."""
    return request.topic, request.place - request.since_switch


def _after_switch(stream: Stream, title: str, path: Path) -> Path:
    figure = new_figure(9.0, 4.4)
    by_token, by_request = figure.subplots(1, 2)
    for number, arm in enumerate(stream.arms):
        look = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "label": arm.arm,
        }
        shares = [(place, share) for place, share in enumerate(arm.buckets) if share is not None]
        by_token.plot(
            [(place + 0.5) * stream.bucket_tokens for place, _ in shares],
            [share for _, share in shares],
            markersize=4.5,
            linewidth=1.4,
            **look,
        )
        by_request.plot(
            [nth.number for nth in arm.requests],
            [nth.acceptance_length for nth in arm.requests],
            markersize=5.5,
            linewidth=1.4,
            **look,
        )
    by_token.axhline(stream.recovered, color=NEUTRAL, linestyle="--", linewidth=1.2, label=_goal(stream))
    by_token.set_xlabel("Tokens generated since the switch")
    by_token.set_ylabel(f"Coverage of {stream.bucket_tokens} tokens, all switches")
    by_token.set_xlim(left=0)
    by_request.set_xlabel("Request after the switch")
    by_request.set_ylabel("τ, tokens per draft, all switches")
    by_request.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (by_token, by_request):
        tidy(axes)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, 4)
    return save(figure, path)


def _goal(stream: Stream) -> str:
    return f"coverage {stream.recovered:g}"
