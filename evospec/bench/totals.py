"""A bench in one table: each arm at each batch size, over all domains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from evospec.bench.markdown import number, table
from evospec.bench.results import Run

_COLUMNS = (
    *("batch", "arm", "tokens/s", "speed-up", "decode tokens/s", "speed-up", "slowest request"),
    *("requests below 0.95", "share of full τ", "active rows", "coverage", "graphs captured in turns"),
    "learned after",
)
NOTES = """\
- *All domains*: means over domains of what the tables below give, tokens/s being the total of all requests
  that are decoded together. Of *slowest request* it is the least, of captured graphs the sum.
- *learned after*: what was learned once a batch's last token was out, by the batch's time. Where requests
  keep coming, it is learned beside them.
"""


def totals_table(runs: Sequence[Run]) -> str:
    """One row per batch size and arm, in the order of the runs."""
    grouped: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.batch, run.name), []).append(run)
    return table(_COLUMNS, [_row(members) for members in grouped.values()], numeric_from=2)


def mean_over_domains(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    """None unless every run has the value."""
    values = [found for found in map(value, runs) if found is not None]
    return fmean(values) if len(values) == len(runs) else None


def least_over_domains(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    """None when no run has the value."""
    return min((found for found in map(value, runs) if found is not None), default=None)


def _row(runs: Sequence[Run]) -> tuple[str, ...]:
    first = runs[0]
    if first.failed:
        return (str(first.batch), first.name, "FAILED", *["-"] * 10)
    drafts = first.drafting is not None
    requests = sum(run.prompts for run in runs)
    slow = sum((run.slow_requests or 0.0) * run.prompts for run in runs) / requests
    return (
        str(first.batch),
        first.name,
        number(mean_over_domains(runs, lambda run: run.tokens_per_s), ",.0f"),
        number(mean_over_domains(runs, lambda run: run.speedup), ".2f"),
        number(mean_over_domains(runs, lambda run: run.decode_tokens_per_s), ",.0f"),
        number(mean_over_domains(runs, lambda run: run.decode_speedup), ".2f"),
        number(least_over_domains(runs, lambda run: run.slowest_request), ".2f"),
        f"{slow:.0%}",
        number(mean_over_domains(runs, lambda run: run.share_of_full), ".1%"),
        f"{fmean(run.active_rows for run in runs):,.0f}" if drafts else "-",
        f"{fmean(run.coverage for run in runs):.3f}" if drafts else "-",
        str(sum(run.captures for run in runs)),
        f"{fmean(run.learning_share for run in runs):.1%}",
    )
