"""report.md of a decode bench, for people; programs read results.json."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from evospec.bench.markdown import machine_lines, settings_table, table
from evospec.bench.results import Results, Run

FILE_NAME = "report.md"

_HEADER = (
    "policy",
    "tokens/s",
    "(quartiles)",
    "speed-up",
    "(quartiles)",
    "τ",
    "active rows",
    "coverage",
    "draft ms",
    "verify ms",
    "peak MB",
    "output",
)
_NOTES = """\
- *tokens/s*: median over batches, prompt processing included; *speed-up* is the median of the ratio to
  plain decoding on the same batch.
- *τ*: acceptance length, tokens per cycle and request with the bonus token. *draft* and *verify* are
  milliseconds per cycle.
- *active rows*: rows of the LM head that the drafter scores, mean over cycles. *coverage*: share of the
  target's tokens that were among them.
- *peak MB*: of the whole process while the policy decoded. All policies share the models and live side
  by side.
- *output*: `equal` is plain decoding's, token by token. `near-ties` differs from it only where the target's
  best logits are within bfloat16 rounding of each other, checked by recomputing the output in one pass.
  A policy with any other difference has failed, and its speed is not given.
"""


def write_report(results: Results, plots: Sequence[Path], folder: Path) -> Path:
    path = folder / FILE_NAME
    path.write_text(render(results, [plot.name for plot in plots]), encoding="utf-8")
    return path


def render(results: Results, plots: Sequence[str]) -> str:
    first = results.runs[0]
    parts = [f"# Decode bench: {first.target}, {results.settings['dtype']}, batch {first.batch}\n"]
    parts += [_failures(results.failures)] if results.failures else []
    for domain, runs in groupby(results.runs, key=lambda run: run.domain):
        parts.append(_domain(domain, list(runs)))
    parts += [f"![{_alt(plot)}]({plot})\n" for plot in plots]
    parts += ["## How to read this\n", _NOTES]
    parts += ["## Machine\n", machine_lines(results.machine, results.git)]
    parts += ["## Settings\n", settings_table(results.settings)]
    return "\n".join(parts)


def _failures(runs: Sequence[Run]) -> str:
    reasons = {run.policy: run.failure for run in runs}
    lines = [f"- **{policy} FAILED**: {reason}" for policy, reason in reasons.items()]
    return "## Failed: the output is not the target's\n\n" + "\n".join(lines) + "\n"


def _domain(domain: str, runs: Sequence[Run]) -> str:
    header = f"## {domain} ({runs[0].prompts} prompts, {runs[0].tokens:,} tokens)\n\n"
    positions = max(len(run.acceptance_by_position) for run in runs)
    parts = [header + table(_HEADER, [_row(run) for run in runs])]
    if positions:
        names = ["acceptance at position", *(str(place + 1) for place in range(positions))]
        parts.append(table(names, [_positions(run, positions) for run in runs if run.drafter]))
    return "\n".join(parts)


def _row(run: Run) -> tuple[str, ...]:
    if run.failed or run.speedup is None or run.speedup_quartiles is None:
        speed = ("FAILED", "-", "-", "-")
    else:
        speed = (
            f"{run.tokens_per_s:.1f}",
            "{:.1f} to {:.1f}".format(*run.tokens_per_s_quartiles),
            f"{run.speedup:.2f}",
            "{:.2f} to {:.2f}".format(*run.speedup_quartiles),
        )
    drafted = run.drafter is not None
    return (
        run.policy,
        *speed,
        f"{run.acceptance_length:.2f}",
        f"{run.active_rows:,.0f}" if drafted else "-",
        f"{run.coverage:.3f}" if drafted else "-",
        f"{run.draft_ms:.2f}" if drafted else "-",
        f"{run.verify_ms:.2f}",
        "-" if run.peak_memory_mb is None else f"{run.peak_memory_mb:,.0f}",
        _output(run),
    )


def _output(run: Run) -> str:
    if run.identical_to_plain is None:
        return "sampled"
    if not run.identical_to_plain:
        return "WRONG"
    return f"{run.near_ties} near-ties" if run.near_ties else "equal"


def _positions(run: Run, positions: int) -> tuple[str, ...]:
    shown = [f"{rate:.3f}" for rate in run.acceptance_by_position]
    return (run.policy, *shown, *["-"] * (positions - len(shown)))


def _alt(plot: str) -> str:
    return Path(plot).stem.replace("_", " ")
