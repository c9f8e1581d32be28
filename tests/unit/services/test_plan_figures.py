"""A plan's numbers are those that were measured, and those that the code really takes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from evospec.align.lora import Lora, LoraShape
from evospec.align.recorder import TraceRecorder
from evospec.align.trace import Trace
from evospec.align.window import Cycle, RequestPast
from evospec.bench.update_memory import SHAPES as BENCHED
from evospec.bench.update_memory import Shape, random_drafter
from evospec.config import AlignmentConfig, Config
from evospec.models.catalogue import BUILT_IN
from evospec.models.deltas import adapted_linears
from evospec.wire import Fingerprints
from services.plan import figures
from services.plan.accelerators import H100, H200, Accelerator
from services.plan.errors import PlanError
from services.plan.index import plan_index
from services.plan.question import Load, Question
from services.plan.registry import adapter_floats
from services.plan.shapes import SHAPES, TAPS, ModelShape, shape_of
from services.plan.speed import Speed, turn_share
from services.plan.traces import request_traces
from tests.unit.services.plan_kit import REFERENCE, question

ROOT = Path(__file__).resolve().parents[3]
TINY = ModelShape("tiny", 4, 32, 64, 4, 2, 8, 260, tied=True)


def words(text: str) -> str:
    return " ".join(text.split())


def test_what_is_called_measured_stands_in_the_measurements() -> None:
    page = words((ROOT / "docs" / "measurements.md").read_text(encoding="utf-8"))
    missing = [
        one.source for one in figures.EVERY if one.kind == "measured" and words(one.source) not in page
    ]
    assert missing == []


def test_every_figure_is_printed_with_the_plan() -> None:
    defined = {one for one in vars(figures).values() if isinstance(one, figures.Figure)}
    assert defined == set(figures.EVERY)


@pytest.mark.parametrize(
    ("gpu", "batch", "low", "high"),
    [
        (H200, 1, 1.12, 1.14),  # fitted
        (H200, 8, 1.33, 1.59),  # graphs alone, and with the host's share
        (H200, 32, 2.07, 2.17),  # fitted
        (H100, 1, 1.34, 1.41),
    ],
)
def test_cycles_take_what_was_measured(gpu: Accelerator, batch: int, low: float, high: float) -> None:
    found = Speed(REFERENCE, gpu).cycle_ms(batch)
    assert 0.92 * low <= found <= 1.02 * high


@pytest.mark.parametrize(
    ("batch", "acceptance", "prompt", "measured"),
    [
        (1, 3.61, 150, 2987),
        (8, 3.45, 150, 8652 * 1.53),
        (8, 3.04, 250, 8731 * 1.36),
        (32, 3.45, 150, 29_087),
        (32, 3.07, 250, 29_086),
    ],
)
def test_tokens_a_second_are_within_a_tenth_of_what_was_measured(
    batch: int, acceptance: float, prompt: float, measured: float
) -> None:
    found = 256 * Speed(REFERENCE, H200).requests_per_s(batch, prompt, 256, acceptance)
    assert found == pytest.approx(measured, rel=0.1)


def test_a_model_sixteen_times_as_large_is_as_fast_as_others_found() -> None:
    """SGLang decodes Llama-3.1-8B at 158 tokens/s on an H100 (EAGLE-3, 2503.01840): no fit."""
    assert 1e3 / Speed(SHAPES["llama-3-8b"], H100).plain_ms(1) == pytest.approx(158, rel=0.1)


def test_drafting_is_left_out_where_it_does_not_pay() -> None:
    speed = Speed(REFERENCE, H200)
    assert speed.drafts(1, 3.0)
    assert not speed.drafts(32, 1.2)
    assert speed.requests_per_s(32, 100, 200, 1.2) == speed.requests_per_s(32, 100, 200, 1.0)
    assert turn_share(8) == turn_share(32) < turn_share(2) < turn_share(1)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_models_have_the_weights_that_they_have(name: str) -> None:
    assert SHAPES[name].parameters == pytest.approx(BUILT_IN[name].parameters, rel=0.01)


@pytest.mark.parametrize("name", sorted(BENCHED))
def test_sizes_are_those_that_updates_are_measured_at(name: str) -> None:
    shape, benched = SHAPES[name], BENCHED[name]
    sizes = (shape.hidden, shape.intermediate, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab)
    assert Shape(*sizes) == benched


def test_versions_are_as_large_as_those_that_are_published() -> None:
    drafter = random_drafter(Shape(32, 64, 4, 2, 8, 260), 64, torch.device("cpu"))
    assert TINY.drafter_parameters == sum(one.weight.numel() for one in adapted_linears(drafter).values())
    lora = Lora(drafter, LoraShape(rank=16, alpha=16.0, targets="all"), seed=0)
    exported = sum(tensor.numel() for tensor in lora.export(1).tensors.values())
    config = Config(alignment=AlignmentConfig(rank=16, alpha=16.0))
    assert adapter_floats(Question(Load(1, 100, 100), TINY, config=config)) == exported


def record(config: AlignmentConfig, prompt: int, answer: int) -> list[Trace]:
    """Traces of a request that is decoded plainly."""
    recorder = TraceRecorder(config, Fingerprints(target="t", drafter="d", tokenizer="k"))
    size = TAPS * TINY.hidden

    def past(end: int) -> RequestPast:
        first, end = max(end - config.trace_past, 0), max(end, 0)
        shape = (2, TINY.kv_heads, end - first, TINY.head_dim)
        return RequestPast(first, torch.zeros(shape, dtype=torch.bfloat16))

    opened = past(prompt - 1 - recorder.context)
    features = torch.ones(prompt - 1, size)
    recorder.prompt("r", list(range(prompt)), features, opened, torch.ones(TINY.hidden), "")
    for known in range(prompt, prompt + answer):
        cycle = Cycle(
            features=torch.ones(1, size),
            tokens=[7],
            top_ids=np.arange(config.trace_top_k)[None],
            top_logprobs=np.full((1, config.trace_top_k), -1.0),
            drafted=0,
            accepted=0,
            missed=np.zeros(1, dtype=bool),
            past=past(known - recorder.context),
        )
        recorder.emitted("r", [cycle])
    recorder.finish("r")
    return recorder.take()


@pytest.mark.parametrize("features", ["bfloat16", "int8"])
@pytest.mark.parametrize(("prompt", "answer"), [(1, 4), (5, 40), (40, 24), (40, 25), (70, 100), (200, 73)])
def test_traces_are_as_large_as_those_that_are_recorded(
    prompt: int, answer: int, features: Literal["bfloat16", "int8"]
) -> None:
    config = AlignmentConfig(
        trace_positions=32, trace_past=50, trace_top_k=4, trace_features=features, trace_mb_per_s=1000.0
    )
    taken = record(config, prompt, answer)
    found = request_traces(TINY, config, prompt, answer)
    assert found.count == len(taken)
    assert found.nbytes == sum(trace.nbytes for trace in taken)


def test_a_trace_of_the_shipped_drafter_has_the_bytes_that_were_measured() -> None:
    """463 traces of 0.8 MB; eight of SmolLM2 with 80 scored positions each and no past: 3.18 MB."""
    config = AlignmentConfig()
    one = request_traces(REFERENCE, config, 200, 96)
    assert one.count == 1
    assert one.nbytes / 1e6 == pytest.approx(0.8, rel=0.05)
    eight = request_traces(SHAPES["smollm2-135m"], AlignmentConfig(trace_past=0), 100, 80)
    assert 8 * eight.nbytes / 1e6 == pytest.approx(3.18, rel=0.02)


def test_look_ups_come_as_often_as_the_engine_makes_them() -> None:
    asked = question(rate=10, answer=100)
    assert plan_index(asked).lookups_per_s == 10 * (1 + 100 // asked.config.semantic.refresh_tokens)


def test_a_shape_is_read_from_a_models_own_file(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 1000,
        "tie_word_embeddings": True,
    }
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "config.json"
    file.write_text(str(sizes).replace("'", '"').replace("True", "true"))
    assert shape_of(str(file)) == shape_of(str(file.parent))
    assert shape_of(str(file)) == ModelShape("mine", 3, 64, 128, 4, 4, 16, 1000, tied=True)
    file.write_text('{"hidden_size": 64, "num_attention_heads": 4}')
    with pytest.raises(PlanError, match="num_hidden_layers is None"):
        shape_of(str(file))
    with pytest.raises(PlanError, match="no sizes of 'nothing'"):
        shape_of("nothing")
