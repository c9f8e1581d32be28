"""What an overhead bench leaves in its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, JsonValue

from evospec.bench.markdown import machine_lines, settings_table, table
from evospec.bench.record import Record
from evospec.bench.report import FILE_NAME as REPORT
from evospec.bench.results import FILE_NAME, SCHEMA, Machine, Spread
from evospec.bench.style import COLOURS, NEUTRAL, legend_below, new_figure, save, tidy


class Pair(Record):
    """One round: the same requests by both sides. Times to the first token are medians over requests."""

    tokens: int
    direct_tokens_per_s: float
    served_tokens_per_s: float
    direct_ttft_ms: float
    served_ttft_ms: float


class OverheadRow(Record):
    """So many streams; medians over rounds, and quartiles of what differs between the sides.

    Attributes:
        overhead: 1 - tokens/s of the server by the engine's, of the same round.
        ttft_added_ms: time to the first token, server less engine, of the same round.
    """

    streams: int
    direct_tokens_per_s: float
    served_tokens_per_s: float
    overhead: float
    overhead_quartiles: Spread
    direct_ttft_ms: float
    served_ttft_ms: float
    ttft_added_ms: float
    ttft_added_quartiles: Spread
    pairs: tuple[Pair, ...]


class OverheadResults(Record):
    schema_version: int = Field(SCHEMA, alias="schema")
    machine: Machine
    git: str
    settings: dict[str, JsonValue]
    rows: tuple[OverheadRow, ...]

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """results.json, report.md and the plot."""
        plot = _plot(self, folder / "overhead.png")
        results, report = folder / FILE_NAME, folder / REPORT
        results.write_text(self.to_json(), encoding="utf-8")
        report.write_text(render(self), encoding="utf-8")
        return [results, report, plot]


_NOTES = """\
- *engine*: in this process, fed with token ids; *server*: HTTP, gateway, Ray Serve and the same engine in a
  replica, asked by a client on this machine, which takes part of its processors as well.
- Both get the same prompts in the same rounds, in turns, and generate as many tokens of the same text.
- *overhead*: what the server's tokens/s lack of the engine's in the same round. Medians over rounds, with
  quartiles. *first token*: median over a round's requests.
"""


def render(results: OverheadResults) -> str:
    parts = [f"# Overhead of serving: {results.settings['target']}\n", _rows(results.rows)]
    parts += ["![overhead](overhead.png)\n", "## How to read this\n", _NOTES]
    parts += ["## Machine\n", machine_lines(results.machine, results.git)]
    parts += ["## Settings\n", settings_table(results.settings)]
    return "\n".join(parts)


def line(row: OverheadRow) -> str:
    """For the terminal."""
    low, high = row.overhead_quartiles
    return (
        f"{row.streams:>3} streams: engine {row.direct_tokens_per_s:.1f} tokens/s, server "
        f"{row.served_tokens_per_s:.1f}, overhead {row.overhead:.1%} ({low:.1%} to {high:.1%}), first token "
        f"{row.direct_ttft_ms:.1f} and {row.served_ttft_ms:.1f} ms, {row.ttft_added_ms:+.1f}"
    )


def _rows(rows: Sequence[OverheadRow]) -> str:
    header = ["streams", "engine tokens/s", "server tokens/s", "overhead", "quartiles"]
    header += ["engine first token (ms)", "server", "added", "quartiles"]
    return table(header, [_cells(row) for row in rows], numeric_from=0)


def _cells(row: OverheadRow) -> tuple[str, ...]:
    (low, high), (least, most) = row.overhead_quartiles, row.ttft_added_quartiles
    return (
        str(row.streams),
        f"{row.direct_tokens_per_s:.1f}",
        f"{row.served_tokens_per_s:.1f}",
        f"{row.overhead:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{row.direct_ttft_ms:.1f}",
        f"{row.served_ttft_ms:.1f}",
        f"{row.ttft_added_ms:.1f}",
        f"{least:.1f} to {most:.1f}",
    )


def _plot(results: OverheadResults, path: Path) -> Path:
    figure = new_figure(4.2 * len(results.rows) + 0.6, 4.0)
    panels = figure.subplots(1, len(results.rows), squeeze=False)[0]
    for axes, row in zip(panels, results.rows, strict=True):
        for place, pair in enumerate(row.pairs, start=1):
            axes.plot([place, place], [pair.direct_tokens_per_s, pair.served_tokens_per_s], color=NEUTRAL)
        rounds = range(1, len(row.pairs) + 1)
        direct = [pair.direct_tokens_per_s for pair in row.pairs]
        served = [pair.served_tokens_per_s for pair in row.pairs]
        axes.scatter(rounds, direct, color=COLOURS[0], label="engine", zorder=3)
        axes.scatter(rounds, served, color=COLOURS[1], marker="s", label="server", zorder=3)
        axes.set_title(f"{row.streams} stream{'s' * (row.streams > 1)}: {row.overhead:.1%} less", fontsize=10)
        axes.set_xlabel("Round")
        axes.set_xticks(list(rounds))
        axes.set_ylim(bottom=0)
        tidy(axes)
    panels[0].set_ylabel("Tokens per second")
    legend_below(figure, 2)
    return save(figure, path)
