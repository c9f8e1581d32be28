"""What updates take: tensors are counted while they live, and arms differ as they should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evospec.bench import update_memory
from evospec.bench.align_records import UpdateCosts
from evospec.bench.arms import ArmError
from evospec.bench.cli import bench
from evospec.bench.live_bytes import ExtraMemory, LiveBytes
from evospec.bench.update_memory import MemorySettings, Shape, measure_updates

SMALL = ":trace_positions=32:rank=4:batch_traces=4"


def test_tensors_count_once_and_as_long_as_they_live() -> None:
    before = torch.ones(1000)
    live = LiveBytes()
    with live:
        view = before[10:] * 1.0
        same = view[:5]
        kept = torch.zeros(250)
    assert (live.now, live.peak) == (4 * 990 + 1000, 4 * 990 + 1000)
    del view
    assert live.now == 4 * 990 + 1000  # its storage lives in the slice
    del same
    assert live.now == 1000
    with live:
        torch.zeros(100).sum()
        kept += 1
    assert live.now == 1000
    assert live.peak == 4 * 990 + 1000


def test_what_a_backward_pass_holds_counts() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    memory = ExtraMemory(torch.device("cpu"))
    with memory.watch():
        (weight @ weight).exp().sum().backward()
    mebibyte = 2**20
    assert memory.held_mb == pytest.approx(40_000 / mebibyte, rel=0.01)  # the gradient
    assert memory.peak_mb >= 3 * 40_000 / mebibyte
    weight.grad = None
    assert memory.held_mb == 0.0


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_memory, "SHAPES", {"tiny": Shape(32, 64, 4, 2, 8, 40_000)})


@pytest.mark.usefixtures("shapes")
def test_full_vocabulary_losses_and_full_parameters_take_more(tmp_path: Path) -> None:
    arms = [kind + SMALL for kind in ("lora", "full-parameter", "full-parameter+full-loss")]
    options = [
        "--shapes",
        "tiny",
        "--updates",
        "2",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--json",
    ]
    done = CliRunner().invoke(bench, ["memory", "--arms", ",".join(arms), "--out", str(tmp_path), *options])
    assert done.exit_code == 0
    lora, active, standard = json.loads(done.stdout)["updates"]
    assert lora["held_mb"] < active["held_mb"] == pytest.approx(standard["held_mb"], rel=0.05)
    assert lora["peak_mb"] < 0.5 * standard["peak_mb"]
    assert active["peak_mb"] < standard["peak_mb"]
    assert [one["steps"] for one in (lora, active, standard)] == [4, 4, 4]
    report = (tmp_path / "report.md").read_text()
    assert "What updates cost" in report
    assert (tmp_path / "updates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("way", ["lora", "full-parameter:publish_rank=4"])
def test_each_adapter_of_a_bank_takes_its_own_memory(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_memory, "SHAPES", {"tiny": Shape(32, 64, 4, 2, 8, 500)})
    found: list[UpdateCosts] = []
    arms = tuple(f"{way}:adapters={kinds}{SMALL}" for kinds in (1, 2))
    measure_updates(MemorySettings("tiny", arms, device="cpu", updates=2), found.append)
    one, two = found
    assert two.trained_parameters == 2 * one.trained_parameters
    # Two moments, and what was published: a cut of rank 4 is about an eighth of these weights.
    another = (4 if way == "lora" else 3 + 1 / 6) * 4 * one.trained_parameters / 2**20
    assert two.held_mb - one.held_mb == pytest.approx(another, rel=0.1)
    assert (one.steps, two.steps) == (8, 8)


def test_shapes_that_are_not_known_are_told() -> None:
    with pytest.raises(ArmError, match="unknown shapes 'gpt': choose one of smollm2-135m"):
        measure_updates(MemorySettings("gpt", ("lora",), device="cpu"), lambda costs: None)
