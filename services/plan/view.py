"""A plan for people: tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from services.plan.assumptions import assumptions
from services.plan.limits import Costs
from services.plan.planner import Plan, scaled

Rows = list[tuple[str, str, str]]


def show_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints what it takes, what runs out first, and everything that was assumed."""
    console = console or Console()
    load, gpu = plan.question.load, plan.question.hardware.gpu
    console.print(
        f"[bold]{escape(plan.question.shape.name)}[/] on {gpu.name}, "
        f"{_number(load.requests_per_s)} requests/s of {_number(load.prompt_tokens)} + "
        f"{_number(load.answer_tokens)} tokens"
    )
    table = Table("", Column("", justify="right"), "", show_header=False)
    for title, rows in _sections(plan).items():
        table.add_row(f"[bold]{title}[/]", "", "")
        for row in rows:
            table.add_row(*row)
        table.add_section()
    console.print(table)
    _show_limits(plan, console)
    _show_scale(plan, console)
    _show_assumptions(plan, console)


def _sections(plan: Plan) -> dict[str, Rows]:
    gateways = plan.question.config.serve.gateways
    return {
        "decoding": _decoding(plan),
        "traces": _traces(plan),
        "aligner": _aligner(plan),
        "registry (Redis)": _registry(plan),
        "token index (Qdrant)": _index(plan),
        "gateway": [
            ("pieces of answers", f"{_number(plan.gateway.pieces_per_s)}/s", ""),
            ("gateways", str(plan.gateway.needed), f"serve.gateways is {gateways}"),
        ],
    }


def _decoding(plan: Plan) -> Rows:
    one = plan.decoding
    return [
        ("replicas", str(one.replicas), f"a GPU each, {one.memory_gb:.1f} GB of its memory"),
        ("requests together", str(one.batch), "on a replica: engine.max_batch"),
        ("tokens/s", _number(one.tokens_per_s), f"up to {_number(one.most_tokens_per_s)}"),
        (
            "an answer's tokens/s",
            _number(one.request_tokens_per_s),
            "with a full batch" + ("" if one.drafts else "; drafting does not pay: plain decoding"),
        ),
        ("utilisation", f"{one.utilisation:.0%}", f"{_number(one.under_way)} requests under way"),
        ("wait, mean; 95 %", f"{_seconds(one.wait_s)}; {_seconds(one.wait_95_s)}", "for a place in a batch"),
        ("first token", _seconds(one.first_token_s), "mean, network left out"),
    ]


def _traces(plan: Plan) -> Rows:
    one = plan.traces
    return [
        ("a request's traces", f"{one.per_request}, {one.mb_per_request:.2f} MB", ""),
        ("requests recorded", f"{one.recorded_share:.0%}", "the rest is over alignment.trace_mb_per_s"),
        ("to the aligner", f"{_number(one.mb_s)} MB/s", f"{one.replica_mb_s:.2f} MB/s from each replica"),
    ]


def _aligner(plan: Plan) -> Rows:
    one = plan.aligner
    rows = [
        ("updates/s", f"{one.updates_per_s:.2f}", f"{one.wanted_updates_per_s:.2f} are paid for by traces"),
        ("load of its thread", f"{one.load:.0%}", f"{one.trace_ms:.1f} ms a trace"),
        ("share of its GPU", f"{one.gpu_share:.0%}", f"{one.memory_gb:.1f} GB"),
        ("learns from", f"{one.learned_share:.0%}", "of the traces that come"),
        ("versions", f"{_number(one.versions_per_hour)}/h", "at most, were every candidate better"),
    ]
    if one.advised_trace_mb_per_s is not None:
        advised = f"{one.advised_trace_mb_per_s:.3g}"
        rows.append(
            ("advised", advised, "alignment.trace_mb_per_s: what it can learn from is all that is sent")
        )
    return rows


def _registry(plan: Plan) -> Rows:
    one = plan.registry
    return [
        ("a version", f"{one.version_mb:.1f} MB", f"and {one.state_mb:.1f} MB of training state, not pulled"),
        ("to all replicas", f"{_number(one.version_traffic_mb)} MB", f"{_number(one.mb_s)} MB/s on average"),
        (
            "last replica has it",
            _seconds(one.pull_s),
            f"after {max(one.first_wave, one.second_wave)} were told",
        ),
        ("calls", f"{_number(one.calls_per_s)}/s", "polls and acknowledgements"),
        ("memory", f"{_number(one.memory_mb)} MB", f"{_number(one.stored_mb)} MB of data"),
    ]


def _index(plan: Plan) -> Rows:
    one = plan.index
    if not one.points:
        return [("off", "", "semantic.enabled")]
    return [
        ("look-ups", f"{_number(one.lookups_per_s)}/s", f"{_number(one.mb_s)} MB/s with writes"),
        (
            "points",
            f"{_number(one.points_per_s)}/s",
            f"at most {one.points} kept: {_seconds(one.memory_s)} of traffic",
        ),
        ("collection", f"{_number(one.collection_mb)} MB", "vectors, graph and payloads"),
    ]


def _show_limits(plan: Plan, console: Console) -> None:
    table = Table("limit", Column("used", justify="right"), "of", "what to do about it")
    for one in plan.limits:
        colour = "red" if one.share > 1 else "yellow" if one.share > 0.7 else "green"
        table.add_row(
            one.name,
            f"[{colour}]{one.share:.0%}[/]",
            f"{_number(one.available)} {one.unit}".strip(),
            one.advice if one.share > 0.7 else "",
        )
    console.print(table)
    first = plan.first_limit
    verdict = "[green]fits[/]" if plan.fits else "[red]does not fit[/]"
    console.print(
        f"{verdict}; first limit: {first.name}, full at {1 / first.share:.3g} times this load; "
        f"beyond it: {_LOST[first.costs]}"
    )


def _show_scale(plan: Plan, console: Console) -> None:
    table = Table(title="With as much to do for each replica", title_justify="left")
    clusters = scaled(plan)
    table.add_column("replicas")
    for one in clusters:
        table.add_column(_number(one.decoding.replicas), justify="right")
    for name, cell in _SCALE_ROWS.items():
        table.add_row(name, *(cell(one) for one in clusters))
    console.print(table)


def _show_assumptions(plan: Plan, console: Console) -> None:
    table = Table(
        "assumed", Column("", justify="right"), "", "from", title="What this rests on", title_justify="left"
    )
    for one in assumptions(plan.question):
        table.add_row(one.meaning, _number(one.value), one.unit, f"{one.kind}: {escape(one.source)}")
    console.print(table)
    console.print(
        "Times on other GPUs and of other models than Qwen2.5-Coder-0.5B on H200 are estimates, scaled "
        "by bandwidth and compute (services/plan/speed.py)."
    )


_LOST: Mapping[Costs, str] = {
    "answers": "longer waits, then 429",
    "acceptance": "answers go on, drafts gain less",
}
_SCALE_ROWS: Mapping[str, Callable[[Plan], str]] = {
    "requests/s": lambda plan: _number(plan.question.load.requests_per_s),
    "tokens/s": lambda plan: _number(plan.decoding.tokens_per_s),
    "traces, MB/s": lambda plan: _number(plan.traces.mb_s),
    "aligner's thread": lambda plan: f"{plan.aligner.load:.0%}",
    "alignment.trace_mb_per_s, advised": lambda plan: _advised(plan),
    "a version to all, MB": lambda plan: _number(plan.registry.version_traffic_mb),
    "last replica has it": lambda plan: _seconds(plan.registry.pull_s),
    "registry, calls/s": lambda plan: _number(plan.registry.calls_per_s),
    "Redis, MB": lambda plan: _number(plan.registry.memory_mb),
    "look-ups/s": lambda plan: _number(plan.index.lookups_per_s),
    "index, MB/s": lambda plan: _number(plan.index.mb_s),
    "points kept are of": lambda plan: _seconds(plan.index.memory_s),
    "gateways": lambda plan: str(plan.gateway.needed),
    "first limit": lambda plan: plan.first_limit.name,
}


def _advised(plan: Plan) -> str:
    advised = plan.aligner.advised_trace_mb_per_s
    return "as it is" if advised is None else f"{advised:.3g}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "any number"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "for ever"
    if value >= 7200:
        return f"{value / 3600:,.1f} h"
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.1f} ms"
