"""Writes the capacity table of docs/operations.md from `evospec plan`: `python infra/capacity_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evospec.config import Config
from services.plan.accelerators import accelerator_of
from services.plan.aligner import ADVISED_LOAD
from services.plan.errors import PlanError
from services.plan.planner import Plan, plan
from services.plan.question import Hardware, Load, Question
from services.plan.shapes import shape_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
BEGIN, END = "<!-- capacity: begin -->", "<!-- capacity: end -->"

PROMPT, ANSWER = 400, 200
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "llama-3-8b", "gemma-3-27b")
GPUS = ("h200", "h100", "a100", "l40s", "l4")
BATCHES = (8, 32)
CLUSTER = 16
FULL = 0.6999  # of a replica's most: what a plan allows, and not one replica more
PATIENT_S = 10.0

_HEAD = (
    "| model | GPU | batch | tokens/s a replica | an answer's | its memory, GB | aligner: GPU a replica | "
    "replicas until it is full | traces a replica, MB/s | version, MB | Redis, GB | Qdrant, GB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def table() -> str:
    """A replica as full as it may be; Redis and Qdrant for a cluster of `CLUSTER`."""
    return _HEAD + "\n".join(_row(one) for one in _plans()) + "\n"


def page(written: str) -> str:
    """The page with its table made anew."""
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def _plans() -> Iterator[Plan]:
    for model in MODELS:
        for gpu in GPUS:
            for batch in BATCHES:
                made = _full(model, gpu, batch)
                if made is not None:
                    yield made


def _full(model: str, gpu: str, batch: int) -> Plan | None:
    """None where the model does not fit."""

    def ask(rate: float) -> Question:
        hardware = Hardware(gpu=accelerator_of(gpu))
        return Question(
            Load(rate, PROMPT, ANSWER), shape_of(model), hardware, Config(), batch=batch, max_wait_s=PATIENT_S
        )

    try:
        most = plan(ask(0.01)).decoding.most_requests_per_s
    except PlanError:
        return None
    return plan(ask(FULL * most * CLUSTER))


def _row(made: Plan) -> str:
    one, gpu = made.decoding, made.question.hardware.gpu
    unlimited = made.traces.traces_per_s / made.decoding.replicas
    each_load = made.aligner.load / one.replicas
    gpu_share = unlimited * made.question.config.alignment.steps_per_trace * made.aligner.step_ms / 1e3
    cells = (
        made.question.shape.name,
        gpu.name if gpu.measured and made.question.shape.name == "qwen2.5-coder-0.5b" else f"{gpu.name} *",
        str(one.batch) if one.drafts else f"{one.batch} †",
        f"{one.tokens_per_s / one.replicas:,.0f}",
        f"{one.request_tokens_per_s:,.0f}",
        f"{one.memory_gb:.1f}",
        f"{gpu_share:.0%}",
        f"{ADVISED_LOAD / each_load:.0f}",
        f"{made.traces.replica_mb_s:.1f}",
        f"{made.registry.version_mb:.1f}",
        f"{made.registry.memory_mb / 1e3:.1f}",
        f"{made.index.collection_mb / 1e3:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
