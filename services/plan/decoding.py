"""Replicas, and how full they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.plan import figures
from services.plan.errors import PlanError
from services.plan.question import Question
from services.plan.queueing import Queue
from services.plan.shapes import BYTES
from services.plan.speed import Speed

BATCHES = (1, 2, 4, 8, 16, 32)  # beyond 32 nothing was measured
_PATIENT = 0.95


@dataclass(frozen=True, slots=True)
class DecodingPlan:
    """
    Attributes:
        replicas: one GPU each.
        batch: requests together on a replica, `engine.max_batch`.
        most_requests_per_s: of one replica, its batch always full.
        utilisation: of that, on average.
        tokens_per_s: of the cluster under this load; `request_tokens_per_s` of one answer once it runs.
        wait_s, wait_95_s: for a place in a batch, mean and 95th percentile.
        first_token_s: mean.
        under_way: requests that run, on average, in all.
        drafts: whether drafting pays at a full batch; `drafting: auto` decodes plainly otherwise.
    """

    replicas: int
    batch: int
    most_requests_per_s: float
    utilisation: float
    tokens_per_s: float
    most_tokens_per_s: float
    request_tokens_per_s: float
    wait_s: float
    wait_95_s: float
    first_token_s: float
    under_way: float
    drafts: bool
    memory_gb: float

    @property
    def waiting(self) -> float:
        """Requests that wait (Little's law)."""
        return self.wait_s * self.utilisation * self.replicas * self.most_requests_per_s


def plan_decoding(question: Question, traced_mb_s: float, replicas: int | None = None) -> DecodingPlan:
    """The batch that takes the fewest replicas, and among those the smallest: its answers come fastest.

    Args:
        traced_mb_s: traces that a replica makes, which takes from its cycles.
        replicas: how many there are; None: as many as it takes.

    Raises:
        PlanError: the model does not fit a GPU.
    """
    sizes = BATCHES if question.batch is None else (question.batch,)
    gpu = question.hardware.gpu
    most_gb = gpu.memory_gb * figures.MEMORY_SHARE.value
    fitting = [size for size in sizes if memory_gb(question, size) <= most_gb]
    if not fitting:
        raise PlanError(
            f"{question.shape.name} with {sizes[0]} at a time takes {memory_gb(question, sizes[0]):.0f} GB, "
            f"{gpu.name} has {most_gb:.0f} to use: take a larger GPU, a smaller batch or engine.max_length; "
            "a replica runs on one GPU"
        )
    plans = [_with_batch(question, size, traced_mb_s, replicas) for size in fitting]
    return min(plans, key=lambda one: (one.replicas, one.batch))


def memory_gb(question: Question, batch: int) -> float:
    """Of a replica: weights, keys and values of full-length requests, graphs and buffers."""
    shape = question.shape
    weights = BYTES * (shape.parameters + shape.drafter_parameters)
    kept = batch * question.config.engine.max_length * shape.kv_bytes
    return (weights + kept + figures.GRAPH_MEMORY.value * 2**20) / 1e9


def _with_batch(question: Question, batch: int, traced_mb_s: float, given: int | None) -> DecodingPlan:
    load, tau = question.load, question.acceptance
    speed = Speed(question.shape, question.hardware.gpu, question.config.vocabulary.capacity)
    slowed = 1 - figures.TRACING_COST.value * min(traced_mb_s / 5, 1)
    most = slowed * speed.requests_per_s(batch, load.prompt_tokens, load.answer_tokens, tau)
    service_s = batch / most
    replicas = given or _fewest(question, batch, service_s)
    queue = _queue(question, replicas * batch, service_s)
    return DecodingPlan(
        replicas=replicas,
        batch=batch,
        most_requests_per_s=most,
        utilisation=load.requests_per_s / (most * replicas),
        tokens_per_s=load.requests_per_s * load.answer_tokens,
        most_tokens_per_s=replicas * most * load.answer_tokens,
        request_tokens_per_s=load.answer_tokens / service_s,
        wait_s=queue.mean_wait_s,
        wait_95_s=queue.wait_s(_PATIENT),
        first_token_s=queue.mean_wait_s + speed.prompt_ms(load.prompt_tokens) / 1e3,
        under_way=queue.offered,
        drafts=speed.drafts(batch, tau),
        memory_gb=memory_gb(question, batch),
    )


def _fewest(question: Question, batch: int, service_s: float) -> int:
    """Replicas that are no busier than they may be, and keep nobody waiting for too long."""

    def enough(replicas: int) -> bool:
        return _queue(question, replicas * batch, service_s).wait_s(_PATIENT) <= question.max_wait_s

    least = math.ceil(question.load.requests_per_s * service_s / (batch * question.utilisation))
    most = least
    while not enough(most):
        least, most = most + 1, 2 * most
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle + 1, most)
    return most


def _queue(question: Question, servers: int, service_s: float) -> Queue:
    load = question.load
    return Queue(
        servers, load.requests_per_s * service_s, service_s, factor=(load.burstiness + load.variation) / 2
    )
