"""`evospec train` as a user runs it: ended by a signal, resumed, and its drafter put to use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evospec.training.corpus import Document, write_corpus
from tests.tiny import TinyFolders, tiny_folders, tiny_target


@pytest.fixture
def folders(tmp_path: Path) -> TinyFolders:
    rng = np.random.default_rng(0)
    documents = [Document(rng.integers(0, 256, 40), 8) for _ in range(24)]
    write_corpus(documents, tmp_path / "corpus", {}, tiny_target().fingerprint.tokenizer)
    return tiny_folders(tmp_path)


def command(folders: TinyFolders, steps: int, *more: str) -> list[str]:
    root = folders.target.parent
    return [
        *(sys.executable, "-m", "evospec", "train", "--target", str(folders.target)),
        *("--out", str(root / "out"), "--corpus", str(root / "corpus"), "--device", "cpu"),
        *("--optimizer-steps", str(steps), "--batch-tokens", "256", *more),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_a_drafter_and_a_checkpoint(
    folders: TinyFolders, number: signal.Signals
) -> None:
    out = folders.target.parent / "out"
    process = subprocess.Popen(command(folders, 10**7), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("training:"):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait() == 128 + number
    assert rest.splitlines()[-1].startswith("stopped at step ")
    assert "Traceback" not in rest
    assert (out / "checkpoint" / "state.safetensors").is_file()
    assert (out / "config.json").is_file()


def test_a_run_can_be_resumed_and_its_drafter_decodes(folders: TinyFolders) -> None:
    out = folders.target.parent / "out"
    first = subprocess.run(command(folders, 4, "--json"), capture_output=True, text=True, check=True)
    result = json.loads(first.stdout)
    assert result["optimizer_steps"] == 4
    assert result["acceptance_length"] >= 1.0
    again = subprocess.run(command(folders, 4, "--resume"), capture_output=True, text=True, check=True)
    assert "tokens per cycle on 6 held-out conversations" in again.stderr
    other = subprocess.run(command(folders, 6, "--resume"), capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "optimizer_steps is 6, was 4" in other.stderr
    models = ("--target", str(folders.target), "--drafter", str(out), "--device", "cpu")
    answer = subprocess.run(
        [sys.executable, "-m", "evospec", "generate", *models, "--prompt", "Hello", "--max-tokens", "8"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tokens" in answer.stderr
