"""The demo's verdict, report and plots, from records made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from evospec.config import Config
from services.demo.display import LineDisplay, ReplicaView, View, open_display
from services.demo.plots import segments, write_plots
from services.demo.report import headline, write_report
from services.demo.results import AlignerSummary, ControllerSummary, DemoResults, RequestRecord, Rollout
from services.demo.summary import shortcomings, summarise
from services.demo.timeline import Timeline
from tests.unit.bench_kit import MACHINE
from tests.unit.services.test_demo_timeline import status

ROLLOUTS = (Rollout(version=1, time_s=12.0), Rollout(version=3, time_s=31.0))


def record(start: float, topic: str, round_: int, error: str | None = None) -> RequestRecord:
    return RequestRecord(
        prompt=f"{topic}/{start}",
        topic=topic,
        round=round_,
        started_s=start,
        first_token_s=start + 1,
        finished_s=start + 4,
        tokens=0 if error else 41,
        cycles=0 if error else 20,
        drafted=0 if error else 100,
        accepted=0 if error else 20,
        error=error,
    )


def demo(records: list[RequestRecord], rollouts: tuple[Rollout, ...] = ROLLOUTS) -> DemoResults:
    timeline = Timeline()
    for time_s in range(0, 45, 3):
        timeline.add(
            float(time_s),
            [status("a", tokens=30 * time_s, drafts=20 * time_s, accepted=10 * time_s), status("b")],
        )
    return DemoResults(
        machine=MACHINE,
        git="unknown",
        settings={"target": "tiny", "replicas": 2, "window_s": 8.0},
        runs=summarise(records, timeline, Config(), 4),
        requests=tuple(records),
        timeline=timeline.points(),
        rollouts=rollouts,
        aligner=AlignerSummary(traces=9, steps=8, candidates=3, rejected=1, published=2, min_gain=0.0),
        controller=ControllerSummary(promoted=2, revoked=1, verdict="version 3: better"),
        index_points=7,
        problems=shortcomings(records, len(records), rollouts),
    )


GOOD = [record(10.0 * place, topic, 1 + place // 2) for place, topic in enumerate(["law", "code"] * 2)]


def test_a_demo_that_showed_everything_has_no_problem() -> None:
    results = demo(GOOD)
    assert results.problems == ()
    assert headline(results) == (
        "4 of 4 requests answered, 164 tokens in 34 s (4.8 tokens/s), "
        "2 adapter versions rolled out to all replicas"
    )


@pytest.mark.parametrize(
    ("records", "planned", "rollouts", "problem"),
    [
        (GOOD, 4, ROLLOUTS[:1], "1 adapter versions reached all replicas, at least 2 should have"),
        (GOOD[:3], 4, ROLLOUTS, "only 3 of 4 requests were sent"),
        (
            [*GOOD[:3], record(40, "law", 2, "HTTP 503: gone")],
            4,
            ROLLOUTS,
            "1 of 4 requests failed, the first",
        ),
    ],
)
def test_what_fell_short_is_said(
    records: list[RequestRecord], planned: int, rollouts: tuple[Rollout, ...], problem: str
) -> None:
    (told,) = shortcomings(records, planned, rollouts)
    assert told.startswith(problem)


def test_rows_are_per_topic_and_round() -> None:
    runs = demo([*GOOD, record(34.0, "code", 2, "lost")]).runs
    assert [(run.domain, run.round) for run in runs] == [("law", 1), ("code", 1), ("law", 2), ("code", 2)]
    last = runs[-1]
    assert (last.prompts, last.requests_failed, last.tokens, last.cycles) == (2, 1, 41, 20)
    assert last.acceptance_length == 2.0
    assert last.tokens_per_s == 41 / 4
    assert last.active_rows == 9


def test_a_topic_lasts_until_the_next_begins() -> None:
    found = segments(GOOD)
    assert [(one.topic, one.start_s, one.end_s) for one in found] == [
        ("law", 0, 10),
        ("code", 10, 20),
        ("law", 20, 30),
        ("code", 30, 34),
    ]


@pytest.mark.parametrize("all_failed", [False, True])
def test_results_report_and_plots_are_written(tmp_path: Path, all_failed: bool) -> None:
    results = demo([record(0.0, "law", 1, "lost")] if all_failed else GOOD)
    path = results.write(tmp_path)
    assert DemoResults.model_validate_json(path.read_text()) == results
    plots = write_plots(results, [], tmp_path)
    report = write_report(results, plots, tmp_path).read_text()
    assert len(plots) == (3 if all_failed else 4)
    for plot in plots:
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert f"({plot.name})" in report
    assert ("**Fell short**" in report) is all_failed
    assert "| v3 | 31 |" in report
    assert "controller promoted 2 and revoked 1 of them. Its last verdict is on version 3: better." in report


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal() -> None:
    console = Console(file=None, force_terminal=False, width=300, record=True)
    view = View(3.0, "law, round 1", 5, 1, 72, [ReplicaView("replica 1", 20.5, None, 1234, 2, 1)], 1)
    with console.capture() as captured, open_display(console) as display:
        assert isinstance(display, LineDisplay)
        display.show(view)
        display.show(view)
    lines = captured.get().splitlines()
    assert lines == [
        "    3 s  law, round 1  5/72 requests, 1 failed  [replica 1: 20.5 tokens/s, τ -, 1,234 rows, v2]"
    ]


def test_progress_is_a_table_on_a_terminal() -> None:
    console = Console(force_terminal=True, width=100)
    view = View(3.0, "law, round 1", 5, 1, 72, [ReplicaView("replica 1", 20.5, 1.75, 1234, 2, 1)], 1)
    with console.capture() as captured, open_display(console) as display:
        display.show(view)
    shown = captured.get()
    for text in ("law, round 1", "5 of 72 requests", "replica 1", "1.75", "1,234"):
        assert text in shown
