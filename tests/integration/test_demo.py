"""`evospec demo` on tiny models: it reports, and it leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.demo.results import DemoResults
from tests.integration.process_kit import descendants, marked_environment
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.actors.fakes import wait_until

REQUESTS = "192"  # traffic that goes on while versions come: those that are skipped do not count
COMMAND = [sys.executable, "-c", "from services.cli import main; main()", "demo"]
# Every candidate is published, to all at once: what random models learn is not what is tested here.
SETTINGS = {
    "EVOSPEC_ALIGNMENT__MIN_GAIN": "-9",
    "EVOSPEC_ALIGNMENT__MIN_TRACES": "4",
    "EVOSPEC_ALIGNMENT__STEPS_PER_VERSION": "4",
    "EVOSPEC_REGISTRY__POLL_S": "0.2",
    "EVOSPEC_ROLLOUT__CANARY": "false",
    "EVOSPEC_VOCABULARY__CAPACITY": "128",
    "EVOSPEC_VOCABULARY__CORE": "32",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def start(folders: TinyFolders, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Holds the demo that a test starts; ends it when the test did not."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def demo(folders: TinyFolders, out: Path, *options: str, **settings: str) -> subprocess.Popen[str]:
    models = ("--target", str(folders.target), "--drafter", str(folders.drafter))
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *models, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=marked_environment() | SETTINGS | settings,
    )


def test_it_serves_learns_reports_and_stops(
    folders: TinyFolders, start: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    start.append(demo(folders, tmp_path / "out", "--requests", REQUESTS, "--max-tokens", "32"))
    _, err = start[0].communicate(timeout=300)
    assert start[0].returncode == 0, err
    assert "Traceback" not in err
    results = DemoResults.model_validate_json((tmp_path / "out" / "results.json").read_text())
    assert results.problems == ()
    assert len(results.requests) == int(REQUESTS)
    assert len(results.rollouts) >= 2
    assert {run.domain for run in results.runs} == {"general", "code", "law", "medicine"}
    assert {sample.replica for sample in results.timeline[-1].replicas} == {"replica 1", "replica 2"}
    assert results.aligner is not None
    assert results.aligner.published >= 2
    assert results.index_points > 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"{REQUESTS} of {REQUESTS} requests answered" in report
    assert str(tmp_path) not in report
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    wait_until(lambda: not descendants(), 30)


def test_an_interrupt_under_traffic_leaves_nothing_running(
    folders: TinyFolders, start: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    start.append(demo(folders, tmp_path / "out", "--requests", "5000"))
    assert start[0].stderr is not None
    assert any("requests" in line for line in start[0].stderr), "the traffic never began"
    assert descendants()
    os.killpg(start[0].pid, signal.SIGINT)
    _, err = start[0].communicate(timeout=120)
    assert start[0].returncode == 130
    assert "Traceback" not in err
    wait_until(lambda: not descendants(), 30)


def test_too_few_versions_are_a_failure_of_the_demo(
    folders: TinyFolders, start: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Without alignment nothing is rolled out: the report is there, and says so."""
    options = ("--requests", "8", "--max-tokens", "4", "--replicas", "1")
    start.append(demo(folders, tmp_path / "out", *options, EVOSPEC_ALIGNMENT__ENABLED="false"))
    _, err = start[0].communicate(timeout=300)
    assert start[0].returncode == 1
    assert err.splitlines()[-1] == (
        "the demo fell short: 0 adapter versions reached all replicas, at least 2 should have"
    )
    assert "**Fell short**" in (tmp_path / "out" / "report.md").read_text()


def test_bad_input_is_told_before_anything_starts(folders: TinyFolders, tmp_path: Path) -> None:
    process = demo(folders, tmp_path / "out", "--drafter", "nowhere")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("error: no drafter at 'nowhere'")
    assert "Traceback" not in err
