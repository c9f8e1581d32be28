"""report.md of a load run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from evospec.bench.markdown import machine_lines, number, settings_table, table
from evospec.bench.report import FILE_NAME
from services.load.results import Failure, LoadResults, LoadRun, Percentiles

_NOTES = """\
- Latencies are those of complete answers, and count from when a request was *due*: in an open loop from its
  arrival, however late it was sent. *late*: how late the load generator itself was.
- *first token*: to the first piece of text. *between pieces*: from one piece of text to the next, over all
  requests; a piece holds all tokens of a cycle. *per token*: a request's time behind its first text by its
  tokens but one.
- *tokens/s* and *requests/s*: all requests together, from the first that was due to the last answer.
- *τ*: tokens per draft-and-verify cycle, by the `evospec` extension of `usage`; *accepted*: of the draft
  tokens. Other endpoints don't tell.
- *all* is not the sum of what domains would reach alone: they ran in the same time.
"""
_LATENCIES: tuple[tuple[str, Callable[[LoadRun], Percentiles | None]], ...] = (
    ("first token", lambda run: run.ttft_ms),
    ("between pieces", lambda run: run.gap_ms),
    ("per token", lambda run: run.token_ms),
    ("end to end", lambda run: run.latency_ms),
    ("late", lambda run: run.late_ms),
)


def write_report(results: LoadResults, plots: Sequence[Path], folder: Path) -> Path:
    path = folder / FILE_NAME
    path.write_text(render(results, [plot.name for plot in plots]), encoding="utf-8")
    return path


def render(results: LoadResults, plots: Sequence[str]) -> str:
    parts = [f"# Load: {results.settings['model']}\n", headline(results) + "\n"]
    parts += [f"![{Path(plot).stem}]({plot})\n" for plot in plots]
    parts += ["## Speed\n", _speed(results.runs)]
    for run in results.runs:
        parts += [f"## Milliseconds, {run.domain}\n", _latencies(run)]
    if results.failures:
        parts += ["## Failed requests\n", failure_table(results.failures)]
    parts += ["## How to read this\n", _NOTES]
    parts += ["## Machine of the load generator\n", machine_lines(results.machine, results.git)]
    parts += ["## Settings\n", settings_table(results.settings)]
    return "\n".join(parts)


def headline(results: LoadResults) -> str:
    """The run in one line."""
    run = results.total
    parts = [f"{run.requests - run.failed} of {run.requests} requests answered in {run.seconds:.1f} s"]
    parts.append(f"{run.tokens_per_s:.1f} tokens/s")
    if run.ttft_ms is not None:
        parts.append(f"first token {run.ttft_ms.p50:.0f} ms (p99 {run.ttft_ms.p99:.0f})")
    if run.latency_ms is not None:
        parts.append(f"end to end {run.latency_ms.p50:.0f} ms (p99 {run.latency_ms.p99:.0f})")
    if run.acceptance_length is not None:
        parts.append(f"τ {run.acceptance_length:.2f}")
    return ", ".join(parts)


def failure_table(failures: Sequence[Failure]) -> str:
    rows = [(str(one.status or "none"), one.reason, str(one.count)) for one in failures]
    return table(("status", "reason", "requests"), rows, numeric_from=2)


def _speed(runs: Sequence[LoadRun]) -> str:
    header = ("domain", "requests", "failed", "tokens", "tokens/s", "requests/s", "τ", "accepted")
    rows = [
        (
            run.domain,
            str(run.requests),
            str(run.failed),
            f"{run.tokens:,}",
            f"{run.tokens_per_s:.1f}",
            f"{run.requests_per_s:.2f}",
            number(run.acceptance_length, ".2f"),
            number(run.acceptance_rate, ".1%"),
        )
        for run in runs
    ]
    return table(header, rows)


def _latencies(run: LoadRun) -> str:
    header = ("latency", "p50", "p90", "p95", "p99", "largest", "mean")
    rows = []
    for name, read in _LATENCIES:
        found = read(run)
        if found is not None:
            shown = (found.p50, found.p90, found.p95, found.p99, found.largest, found.mean)
            rows.append((name, *(f"{value:,.1f}" for value in shown)))
    return table(header, rows)
