"""`bench serve` against an endpoint of known delays: what is sent, when, and what is made of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from evospec.bench.prompts import read_prompts
from services.cli import app
from services.load.command import measure, run_load, went_wrong
from services.load.results import LoadResults
from services.load.settings import Asked, LoadSettings, base_url
from tests.unit.services.endpoint_kit import Endpoint


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"{topic} {number}", "domain": topic} for topic in ("law", "code") for number in (1, 2)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def load(prompts: Path) -> Callable[..., LoadResults]:
    """Sends a load and writes no files."""

    def run(endpoint: Endpoint, **settings: object) -> LoadResults:
        given = LoadSettings(endpoint.url, (prompts,), **{"requests": 8, **settings})  # type: ignore[arg-type]
        quiet = Console(quiet=True)
        return asyncio.run(measure(given, endpoint.url, None, read_prompts([prompts]), quiet))

    return run


def test_a_closed_loop_keeps_as_many_under_way(load: Callable[..., LoadResults]) -> None:
    with Endpoint(first_s=0.03, gap_s=0.02) as endpoint:
        results = load(endpoint, concurrency=3)
    run = results.total
    assert endpoint.most == 3
    assert (run.requests, run.failed, run.tokens, run.prompt_tokens) == (8, 0, 80, 56)
    assert run.acceptance_length == 3.0
    assert run.acceptance_rate == 0.4
    # Never sooner than the endpoint sends; how much later depends on the machine.
    assert run.ttft_ms is not None
    assert run.gap_ms is not None
    assert run.latency_ms is not None
    assert run.ttft_ms.p50 >= 29
    assert run.gap_ms.count == 24
    assert run.gap_ms.mean >= 15
    assert run.latency_ms.p50 >= 85


def test_an_open_loop_waits_for_nobody(load: Callable[..., LoadResults]) -> None:
    """All arrive long before the first answer: a closed loop would never have so many under way."""
    with Endpoint(first_s=0.4) as endpoint:
        results = load(endpoint, rate=1000.0)
    assert endpoint.most == 8
    dues = [request.due_s for request in results.requests]
    assert dues == sorted(dues)
    assert all(request.started_s >= request.due_s for request in results.requests)


def test_topics_switch_and_domains_are_told_apart(load: Callable[..., LoadResults]) -> None:
    with Endpoint() as endpoint:
        results = load(endpoint, concurrency=1, every=2)
    asked = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert asked == ["law 1", "law 2", "code 1", "code 2"] * 2
    assert [(run.domain, run.requests) for run in results.runs] == [("all", 8), ("law", 4), ("code", 4)]


def test_requests_ask_for_what_was_chosen(load: Callable[..., LoadResults]) -> None:
    asked = Asked(max_tokens=9, temperature=0.5, stream=False, chat=False, ignore_eos=True)
    with Endpoint(extension=False) as endpoint:
        results = load(endpoint, model="second", asked=asked, requests=1)
    (body,) = endpoint.bodies
    assert endpoint.paths == ["/v1/completions"]
    assert body.pop("prompt")
    assert body == {"model": "second", "max_tokens": 9, "temperature": 0.5, "ignore_eos": True}
    run = results.total
    assert (run.ttft_ms, run.gap_ms, run.token_ms, run.acceptance_length) == (None, None, None, None)
    assert run.tokens == 10


def test_failures_are_counted_by_status_and_reason(load: Callable[..., LoadResults]) -> None:
    with Endpoint(first_s=0.4, capacity=3) as endpoint:
        results = load(endpoint, rate=1000.0)
    (failure,) = results.failures
    assert (failure.status, failure.reason, failure.count) == (429, "too busy", 5)
    assert results.total.failed == 5
    assert results.total.tokens == 30


def test_an_answer_that_is_cut_off_is_a_failure(load: Callable[..., LoadResults]) -> None:
    with Endpoint(cut=True) as endpoint:
        results = load(endpoint, requests=2)
    assert results.total.failed == 2
    assert results.total.latency_ms is None
    assert results.failures[0].status == 200


def test_warm_up_counts_nowhere(load: Callable[..., LoadResults]) -> None:
    with Endpoint() as endpoint:
        results = load(endpoint, warmup=5, requests=3)
    assert len(endpoint.bodies) == 8
    assert len(results.requests) == 3


@pytest.mark.parametrize(
    ("url", "root"),
    [("http://a:8000", "http://a:8000"), ("http://a/v1", "http://a"), ("https://a/x/v1/", "https://a/x")],
)
def test_the_root_of_an_endpoint(url: str, root: str) -> None:
    assert base_url(url) == root


# --- the command ---


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "serve", *arguments])


@pytest.mark.parametrize("variable", [None, "EVOSPEC_API_KEY"])
def test_the_key_is_an_option_or_in_the_environment(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    given = ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--requests", "2", "--json"]
    if variable is None:
        given += ["--api-key", "secret"]
    else:
        monkeypatch.setenv(variable, "secret")
    with Endpoint(key="secret") as endpoint:
        done = bench(endpoint.url, *given)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"][0]["failed"] == 0
    assert "secret" not in (tmp_path / "out" / "results.json").read_text()


def test_a_refused_key_is_one_line(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Endpoint(key="secret") as endpoint:
        done = bench(endpoint.url, "--prompts", str(prompts), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "refuses the key (wrong key)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:1"], "http://127.0.0.1:1 can't be reached: "),
        (["127.0.0.1:8000"], "is not the URL of an endpoint"),
        (["http://a", "--rate", "0"], "above 0"),
        (["http://a", "--rate", "2", "--concurrency", "3"], "no --concurrency"),
        (["http://a", "--requests", "0"], "--requests"),
    ],
)
def test_bad_input_is_one_line(prompts: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = bench(*arguments, "--prompts", str(prompts), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_files_are_written_and_name_no_host(prompts: Path, tmp_path: Path) -> None:
    with Endpoint(capacity=3) as endpoint:
        settings = LoadSettings(endpoint.url, (prompts,), requests=8, rate=1000.0)
        results = run_load(settings, None, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("results.json", "report.md", "latency.png", "timeline.png")
    }
    written = (tmp_path / "out" / "results.json").read_text()
    assert LoadResults.model_validate_json(written).runs == results.runs
    assert "127.0.0.1" not in written


@pytest.mark.parametrize(("capacity", "wrong"), [(1, False), (0, True)])
def test_refusals_under_overload_are_no_error_but_answering_nothing_is(
    load: Callable[..., LoadResults], capacity: int, wrong: bool
) -> None:
    with Endpoint(first_s=0.3, capacity=capacity) as endpoint:
        assert went_wrong(load(endpoint, rate=1000.0)) == wrong
