"""report.md of a decode bench, for people; programs read results.json."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from evospec.bench.cost_tables import NOTES as COST_NOTES
from evospec.bench.cost_tables import cost_sections
from evospec.bench.markdown import machine_lines, number, settings_table, table
from evospec.bench.results import Breakdown, Results, Run, Spread
from evospec.bench.totals import NOTES as TOTALS_NOTES
from evospec.bench.totals import totals_table

FILE_NAME = "report.md"

_SPEED = (
    *("arm", "tokens/s", "(quartiles)", "speed-up", "(quartiles)"),
    *("decode tokens/s", "speed-up", "(quartiles)", "predicted", "first token ms", "slowest request"),
    *("requests below 0.95", "peak MB", "output"),
)
_DRAFTS = (
    *("arm", "tokens per cycle", "τ of drafts", "share of full τ", "active rows", "coverage", "head µs"),
    "cycles drafted as",
)
_CYCLE = ("arm", "draft ms", "verify ms", "cycle ms", "least ms", "reached", "tokens/s at least ms")
_PARTS = (
    *("ms of", "draft layer", "draft head", "target layers", "target head", "vocabulary", "host"),
    *("cycle", "marks"),
)
_NOTES = """\
- *tokens/s*: median over batches, from the prompts to the last token; its *speed-up* is the median of the
  ratio to plain decoding on the same batch. *decode* leaves out prompt processing and the tokens it yields.
- *predicted*: the decode speed-up that tokens per cycle and the time of a cycle make by themselves: tokens
  per cycle, times plain decoding's cycle, by the arm's cycle. What is measured below it is lost between
  cycles.
- *first token*: median time from a batch's beginning to a request's first token. Our engine does not process
  again what a prompt has in common with an earlier one; peers do.
- *slowest request*: of all requests, the least speed relative to plain decoding of the same one, from the
  batch's beginning to the request's last token; *requests below 0.95*: how many were slower than that.
- *tokens per cycle*: per request, cycles without a draft included. *τ of drafts* is the acceptance length,
  over cycles with a draft alone, the bonus token included. *share of full τ* is of that of the arm which
  scores all rows and drafts the same way.
- *active rows*: rows of the LM head that the drafter scores, mean over cycles. *coverage*: share of the
  target's tokens that were among them. *head*: scoring the rows once and choosing tokens, microseconds.
- *draft*, *verify* and *cycle* are milliseconds per cycle, from the timed turns. *least* is the time that
  the bytes of a cycle take at the device's copy bandwidth (the roofline), *reached* its share of the
  measured cycle.
- The six parts of a cycle are from passes of their own, over the first batch of the domain. *cycle* is
  measured without looking into it. On a GPU the device's parts are told by marks, in another pass of the
  same batch, and *host* is what they leave of *cycle*; on a CPU marks tell all six. *marks* is what they
  make a cycle longer: it is in none of the other figures but, on a CPU, the parts.
- *peak MB*: of the whole process while the arm decoded. All arms share the models and live side by side.
- *output*: `equal` is plain decoding's, token by token. `near-ties` differs from it only where the target's
  best logits are within bfloat16 rounding of each other, checked by recomputing the output in one pass.
  An arm with any other difference has failed, and its speed is not given.
"""


def write_report(results: Results, plots: Sequence[Path], folder: Path) -> Path:
    path = folder / FILE_NAME
    path.write_text(render(results, [plot.name for plot in plots]), encoding="utf-8")
    return path


def render(results: Results, plots: Sequence[str]) -> str:
    first = results.runs[0]
    sizes = ", ".join(str(batch) for batch in results.batches)
    parts = [f"# Decode bench: {first.target}, {results.settings['dtype']}, batch {sizes}\n"]
    parts += [failures_section(results.failures)] if results.failures else []
    parts += [f"![{_alt(plot)}]({plot})\n" for plot in plots]
    parts += ["## All domains\n", totals_table(results.runs)]
    for batch in results.batches:
        size = f", batch {batch}" if len(results.batches) > 1 else ""
        own = [run for run in results.runs if run.batch == batch]
        for domain, runs in groupby(own, key=lambda run: run.domain):
            parts += _domain(f"{domain}{size}", list(runs))
        costs = cost_sections([arm for arm in results.arms if arm.batch == batch])
        parts += [f"## Costs besides cycles{size}\n", *costs] if costs else []
    parts += ["## How to read this\n", TOTALS_NOTES + _NOTES + COST_NOTES]
    parts += ["## Machine\n", machine_lines(results.machine, results.git)]
    parts += ["## Settings\n", settings_table(results.settings)]
    return "\n".join(parts)


def failures_section(runs: Sequence[Run]) -> str:
    reasons = {run.name: run.failure for run in runs}
    lines = [f"- **{name} FAILED**: {reason}" for name, reason in reasons.items()]
    return "## Failed: the output is not the target's\n\n" + "\n".join(lines) + "\n"


def _domain(title: str, runs: Sequence[Run]) -> list[str]:
    drafting = [run for run in runs if run.drafting is not None]
    positions = max(len(run.acceptance_by_position) for run in runs)
    parts = [
        f"## {title} ({runs[0].prompts} prompt{'s' * (runs[0].prompts > 1)}, {runs[0].tokens:,} tokens)\n",
        table(_SPEED, [_speed(run) for run in runs]),
        "Cycles:\n",
        table(_CYCLE, [_cycle(run) for run in runs]),
    ]
    broken_down = [(run.name, run.breakdown) for run in runs if run.breakdown is not None]
    if broken_down:
        parts.append(table(_PARTS, [_parts(name, breakdown) for name, breakdown in broken_down]))
    if drafting:
        parts += ["Drafts:\n", table(_DRAFTS, [_drafts(run) for run in drafting])]
    if positions:
        names = ["accepted at position", *(str(place + 1) for place in range(positions))]
        rows = [_positions(run, positions) for run in runs if run.acceptance_by_position]
        parts.append(table(names, rows))
    return parts


def _speed(run: Run) -> tuple[str, ...]:
    memory = number(run.peak_memory_mb, ",.0f")
    if run.failed:
        return (run.name, "FAILED", *["-"] * 10, memory, output_cell(run))
    return (
        run.name,
        f"{run.tokens_per_s:.1f}",
        _spread(run.tokens_per_s_quartiles, ".1f"),
        number(run.speedup, ".2f"),
        _spread(run.speedup_quartiles, ".2f"),
        number(run.decode_tokens_per_s, ".1f"),
        number(run.decode_speedup, ".2f"),
        _spread(run.decode_speedup_quartiles, ".2f"),
        number(run.predicted_speedup, ".2f"),
        number(run.ttft_ms, ".1f"),
        number(run.slowest_request, ".2f"),
        number(run.slow_requests, ".0%"),
        memory,
        output_cell(run),
    )


def _drafts(run: Run) -> tuple[str, ...]:
    shares = sorted(run.plan_shares.items(), key=lambda entry: -entry[1])
    return (
        run.name,
        number(run.tokens_per_cycle, ".2f"),
        f"{run.acceptance_length:.2f}",
        number(run.share_of_full, ".1%"),
        f"{run.active_rows:,.0f}",
        f"{run.coverage:.3f}",
        number(run.head_us, ".1f"),
        ", ".join(f"{plan} {share:.0%}" for plan, share in shares),
    )


def _cycle(run: Run) -> tuple[str, ...]:
    ours = run.roofline_ms is not None
    return (
        run.name,
        number(run.draft_ms if run.drafting is not None else None, ".2f"),
        number(run.verify_ms if ours else None, ".2f"),
        number(run.cycle_ms, ".2f"),
        number(run.roofline_ms, ".2f"),
        number(run.roofline_share, ".0%"),
        number(run.roofline_tokens_per_s, ",.0f"),
    )


def _parts(name: str, breakdown: Breakdown) -> tuple[str, ...]:
    values = (
        breakdown.draft_layer_ms,
        breakdown.draft_head_ms,
        breakdown.target_layers_ms,
        breakdown.target_head_ms,
        breakdown.vocabulary_ms,
        breakdown.host_ms,
        breakdown.cycle_ms,
        breakdown.marks_ms,
    )
    return (name, *(f"{value:.2f}" for value in values))


def output_cell(run: Run) -> str:
    if run.identical_to_plain is None:
        return "sampled"
    if not run.identical_to_plain:
        return "WRONG"
    return f"{run.near_ties} near-ties" if run.near_ties else "equal"


def _positions(run: Run, positions: int) -> tuple[str, ...]:
    shown = [f"{rate:.3f}" for rate in run.acceptance_by_position]
    return (run.name, *shown, *["-"] * (positions - len(shown)))


def _spread(spread: Spread | None, form: str) -> str:
    return "-" if spread is None else f"{spread[0]:{form}} to {spread[1]:{form}}"


def _alt(plot: str) -> str:
    return Path(plot).stem.replace("_", " ").replace("-", " ")
