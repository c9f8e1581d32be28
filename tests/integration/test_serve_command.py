"""`evospec serve` as a user starts it: a process that serves, and that leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.process_kit import descendants, marked_environment
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.actors.fakes import wait_until

COMMAND = [sys.executable, "-c", "from services.cli import main; main()", "serve"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def process(folders: TinyFolders, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    file = tmp_path / "evospec.yaml"
    file.write_text(
        f"model: {{target: {folders.target}, drafter: {folders.drafter}, dtype: float32}}\n"
        "engine: {max_batch: 2, max_length: 128}\n"
        "vocabulary: {capacity: 128, core: 32}\n"
        "serve: {port: 0, model_name: tiny}\n"
    )
    started = subprocess.Popen(
        [*COMMAND, "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=marked_environment(),
    )
    yield started
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
    started.communicate()


def next_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"the process ended without a line like {pattern!r}")


# As a terminal (Ctrl-C) and as a service manager do: the signal reaches the whole group, Ray's daemons too.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_leaves_nothing_running(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    url = next_line(process, r"serving tiny at (\S+)/v1")[1]
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 8, "ignore_eos": True}
    response = httpx.post(f"{url}/v1/completions", json=asked, timeout=60)
    assert response.json()["usage"]["completion_tokens"] == 8
    assert descendants()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "stopped"
    assert out == ""
    wait_until(lambda: not descendants(), 30)


def test_an_interrupt_while_it_starts_leaves_nothing_running(process: subprocess.Popen[str]) -> None:
    next_line(process, "starting")
    wait_until(lambda: any("gcs_server" in line for line in descendants()), 120)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 1
    assert "Traceback" not in err
    wait_until(lambda: not descendants(), 30)


def test_a_replica_that_cannot_start_is_told_in_one_line(folders: TinyFolders) -> None:
    """Only the replica finds this out: the drafter's weights are damaged."""
    weights = folders.drafter / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    try:
        models = ["--target", str(folders.target), "--drafter", str(folders.drafter), "--port", "0"]
        done = subprocess.run(
            [*COMMAND, *models],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env=marked_environment(),
        )
    finally:
        weights.write_bytes(content)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"error: drafter \S+ cannot be read: .+", done.stderr.splitlines()[-1])
    wait_until(lambda: not descendants(), 30)
