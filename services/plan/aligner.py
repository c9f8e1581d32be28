"""What the aligner does with the traces that come, and what it can't."""

from __future__ import annotations

from dataclasses import dataclass

from services.plan import figures
from services.plan.question import Question
from services.plan.shapes import SHAPES
from services.plan.speed import FIT
from services.plan.traces import TracePlan

ADVISED_LOAD = 0.7
_RANK = 64  # of the step that was measured


@dataclass(frozen=True, slots=True)
class AlignerPlan:
    """
    Attributes:
        step_ms: an update; `trace_ms` what each trace takes of the aligner's thread, its share of updates and
            gates included.
        updates_per_s: made; `wanted_updates_per_s` what all traces would pay for.
        load: of the thread that reads, trains and judges; above 1 the oldest traces are dropped.
        gpu_share: of the time of its GPU; `memory_gb` of its memory.
        learned_share: of the traces that come.
        versions_per_hour: at most, were every candidate better.
        advised_trace_mb_per_s: `alignment.trace_mb_per_s` with which the aligner is not overrun; None: as it
            is.
    """

    step_ms: float
    trace_ms: float
    wanted_updates_per_s: float
    updates_per_s: float
    load: float
    gpu_share: float
    memory_gb: float
    learned_share: float
    versions_per_hour: float
    advised_trace_mb_per_s: float | None


def plan_aligner(question: Question, traces: TracePlan, replicas: int) -> AlignerPlan:
    config = question.config.alignment
    step_ms = _step_ms(question)
    with_gate = step_ms * (1 + figures.GATE_STEPS.value / config.steps_per_version)
    reading = _reading_ms(question, traces)
    trace_ms = reading + config.steps_per_trace * with_gate
    load = traces.traces_per_s * trace_ms / 1e3
    learned = min(1.0, 1 / load) if load else 1.0
    updates = traces.traces_per_s * learned * config.steps_per_trace
    advised = None
    if load > ADVISED_LOAD:
        advised = traces.replica_mb_s * 1e6 / 2**20 * ADVISED_LOAD / load
    return AlignerPlan(
        step_ms=step_ms,
        trace_ms=trace_ms,
        wanted_updates_per_s=traces.traces_per_s * config.steps_per_trace,
        updates_per_s=updates,
        load=load,
        gpu_share=updates * with_gate / 1e3,
        memory_gb=_memory_gb(question),
        learned_share=learned,
        versions_per_hour=_versions_per_hour(question, updates, replicas),
        advised_trace_mb_per_s=advised,
    )


def _step_ms(question: Question) -> float:
    """The measured step, and the arithmetic that another drafter has beyond that one's.

    A step's time on the measured drafter is the host's and small kernels': 6 multiplications and additions a
    weight, position and unrolled step would take a thirtieth of it.
    """
    config = question.config.alignment
    reference = SHAPES["qwen2.5-coder-0.5b"].drafter_parameters
    positions = config.batch_traces * config.trace_positions * config.test_time_steps
    beyond = max(question.shape.drafter_parameters - reference, 0)
    flops = 6 * beyond * positions
    return figures.STEP.value + flops / (question.hardware.trainer.tflops * FIT.compute_share * 1e9)


def _reading_ms(question: Question, traces: TracePlan) -> float:
    if not traces.traces_per_s:
        return 0.0
    mb = traces.mb_per_request / traces.per_request
    return figures.TRACE_READ.value * mb / 0.97 + figures.CONTEXT_READ.value / traces.per_request


def _memory_gb(question: Question) -> float:
    """Drafter in float32, embeddings and head, the update's peak as measured and scaled by the drafter."""
    shape = question.shape
    tables = 2 * (1 if shape.tied else 2) * shape.vocab * shape.hidden
    scale = max(shape.drafter_parameters / SHAPES["qwen2.5-coder-0.5b"].drafter_parameters, 1.0)
    return (4 * shape.drafter_parameters + tables + figures.STEP_MEMORY.value * 1e6 * scale) / 1e9


def _versions_per_hour(question: Question, updates_per_s: float, replicas: int) -> float:
    """Each waits for the trial of the one before."""
    made = 3600 * updates_per_s / question.config.alignment.steps_per_version
    rollout = question.config.rollout
    if not rollout.canary or replicas < 2 or not rollout.soak_s:
        return made
    return min(made, 3600 / rollout.soak_s)
