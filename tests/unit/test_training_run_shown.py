"""What training shows and leaves to read: progress, summary, curve, card, throughput, options."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evospec.cli import app
from evospec.training.checkpoint import Measurement
from evospec.training.curve import short_count, write_curve
from evospec.training.display import clock, describe, render, show_training, summary
from evospec.training.history import HistoryLine
from evospec.training.plan import TrainingPlan
from evospec.training.progress import Progress, StepFigures, is_timed
from evospec.training.provenance import TrainingResult
from evospec.training.schedule import rate_factor
from evospec.training.throughput import Work, bfloat16_peak
from tests.tiny import tiny_drafter, tiny_folders, tiny_target

RESULT = TrainingResult(
    acceptance_length=2.314,
    acceptance_by_step=(0.58, 0.34, 0.2, 0.12, 0.07),
    held_out=64,
    held_out_kind="on-policy",
    accuracy_by_step=(0.6, 0.55),
    corpus_tokens=10_000_000,
    trained_tokens=42_000_000,
    optimizer_steps=2600,
    minutes=6.0,
    tokens_per_s=116_000.0,
    peak_share=0.091,
    measurements=(
        Measurement(share=0.25, tokens=10_500_000, acceptance_length=2.0),
        Measurement(share=0.5001, tokens=21_000_000, acceptance_length=2.1),
        Measurement(share=1.0, tokens=42_000_000, acceptance_length=2.22),
    ),
)


def step(loss: float = 2.0, seconds: float = 0.5) -> StepFigures:
    return StepFigures(loss, (0.5, 0.25), 1.0, 1e-3, tokens=1000, roots=500, seconds=seconds)


def shown(item: object) -> list[str]:
    page = StringIO()
    Console(file=page, width=80, force_terminal=False).print(item, highlight=False, markup=False)
    return page.getvalue().splitlines()


def test_progress_adds_up_and_smooths() -> None:
    progress = Progress()
    progress.add(step(loss=2.0, seconds=0.0))
    progress.add(step(loss=4.0))
    assert (progress.step, progress.tokens, progress.roots) == (2, 2000, 1000)
    assert progress.loss == pytest.approx(2.1)
    assert progress.tokens_per_s == 2000.0  # the first step was not timed
    assert [is_timed(steps) for steps in range(5)] == [False, False, False, True, True]


def test_the_budget_is_minutes_or_steps() -> None:
    plan = TrainingPlan(minutes=2.0)
    assert plan.share(step=1000, elapsed_s=30.0) == 0.25
    assert replace(plan, optimizer_steps=4000).share(step=1000, elapsed_s=1e9) == 0.25


def test_the_rate_rises_to_its_peak_and_falls() -> None:
    factors = [rate_factor(step / 1000, step, warmup=0.1) for step in range(1001)]
    peak = factors.index(max(factors))
    assert 80 <= peak <= 100
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[0] == factors[-1] == pytest.approx(0.05)
    # A budget that is spent on compiling is no warm-up.
    assert rate_factor(0.3, step=1, warmup=0.03) < 0.2


def test_progress_fits_80_columns() -> None:
    progress = Progress(step=123_456, tokens=9_876_543_210, elapsed=50_000.0, share=0.4567, held_out=2.34)
    progress.loss, progress.accuracy, progress.seconds, progress.timed_tokens = (
        12.345,
        (0.5,) * 16,
        1.0,
        10**6,
    )
    lines = shown(render(progress))
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    assert "46%" in lines[0]
    assert "16:31:21 left" in lines[0]
    assert "held out τ 2.34" in lines[2]
    assert describe(progress).startswith("training: 46%  step 123,456  loss 12.345  9.88B tokens")


def test_where_there_is_no_terminal_a_line_is_printed_at_once_and_not_at_every_step() -> None:
    page = StringIO()
    with show_training(Console(file=page, width=40)) as report:
        for _ in range(3):
            report(Progress(step=1, loss=1.0, accuracy=(0.5,)))
    assert page.getvalue().count("\n") == 1
    assert "step 1  loss 1.000" in page.getvalue()


def test_the_summary_says_how_good_it_is() -> None:
    text = "\n".join(shown(summary(RESULT, "out")))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "2.31 tokens per cycle on 64 held-out conversations" in text
    assert "+0.12 from 21M to 42M tokens" in text
    assert "9.1% of" in text
    assert "--drafter out" in text
    unknown = RESULT.model_copy(update={"peak_share": None, "measurements": RESULT.measurements[:1]})
    assert "peak" not in "\n".join(shown(summary(unknown, "out")))
    assert unknown.last_doubling is None


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    lines = [
        HistoryLine(
            step=number,
            tokens=1000 * number,
            seconds=1.0,
            share=number / 300,
            loss=8 / number,
            accuracy=(0.5, 0.4),
            rate=1e-3,
            grad_norm=1.0,
            held_out=1.5 if number == 150 else None,
        )
        for number in range(1, 301)
    ]
    for some in (lines, lines[:1]):
        path = write_curve(some, "Drafter for tiny", tmp_path / "curve.png")
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1_234, "1.23k"), (12_345_678, "12.3M"), (2e9, "2B")]
)
def test_counts_are_short(value: float, text: str) -> None:
    assert short_count(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3725, "1:02:05")])
def test_durations_read_as_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_work_counts_the_linear_layers() -> None:
    """By hand: hidden 32, MLP 64, 4 heads of 8 and 2 of keys and values, 260 rows, tied head."""
    target = tiny_target()
    drafter = tiny_drafter(target)
    block = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    body = 4 * block + 32
    layer = 64 * 32 + 2 * 64 * 16 + 32 * 32 + 3 * 32 * 64 + 4 * 32
    work = Work.of(target, drafter, steps=5)
    assert work.per_token == 2 * body + 6 * 96 * 32 + 6 * 5 * layer
    assert work.per_root == (2 + 4 * 5) * 260 * 32
    assert work.share_of(1e9, 1000.0, 0.5) == 1000 * (work.per_token + 0.5 * work.per_root) / 1e9


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_of_known_devices(device: str, teraflops: float) -> None:
    assert bfloat16_peak(device) == teraflops * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    assert bfloat16_peak("NVIDIA GeForce GTX 1080") is None


def test_the_command_refuses_what_the_folder_cannot_give(tmp_path: Path) -> None:
    folders = tiny_folders(tmp_path)
    command = ["train", "--target", str(folders.target), "--device", "cpu", "--minutes", "0.1"]
    runner = CliRunner()
    for out, more, message in (
        (folders.drafter, [], "holds a drafter already"),
        (tmp_path / "new", ["--resume"], "nothing to resume in"),
        (tmp_path / "new", ["--ema", "1.5"], "--ema"),
        (tmp_path / "new", ["--optimizer-steps", "0"], "--optimizer-steps"),
    ):
        done = runner.invoke(app, [*command, "--out", str(out), *more])
        assert done.exit_code == 2
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
    (folders.drafter / "checkpoint").mkdir()
    (folders.drafter / "checkpoint" / "state.safetensors").touch()
    done = runner.invoke(app, [*command, "--out", str(folders.drafter)])
    assert "holds a training run: continue it with --resume" in done.stderr
