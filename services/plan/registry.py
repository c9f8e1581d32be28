"""What versions take of Redis and of its network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.plan.question import Question

_MOMENTS = 2  # of AdamW, float32 as the weights are
_FLOAT32 = 4
_INT32 = 4
_SPARE_VERSIONS = 2  # the one being stored, and one that is kept for its state
_FORKED = 2.0  # while Redis saves, what is written meanwhile is there twice


@dataclass(frozen=True, slots=True)
class RegistryPlan:
    """
    Attributes:
        version_mb: what a replica pulls, successor tables full; `state_mb` is stored beside it.
        pull_s: until the last of the replicas that are told at once has its version, by the server's network
            alone; `first_wave` and `second_wave` of them pull, the canary's and the others.
        version_traffic_mb: of one version to all replicas.
        mb_s: on average, at `versions_per_hour`.
        calls_per_s: polls and acknowledgements.
        stored_mb: data of the versions that are kept; `memory_mb` what the server needs, saves included.
        buffers_mb: of answers that are on their way, at most: the server holds each.
    """

    version_mb: float
    state_mb: float
    first_wave: int
    second_wave: int
    pull_s: float
    version_traffic_mb: float
    mb_s: float
    calls_per_s: float
    stored_mb: float
    memory_mb: float
    buffers_mb: float


def adapter_floats(question: Question) -> int:
    """Numbers of a version's deltas: low-rank ones of all linear layers, or those that are named whole."""
    config = question.config.alignment
    linears = question.shape.drafter_linears
    general = 0
    if config.method == "lora":
        general = config.rank * sum(inputs + outputs for inputs, outputs in linears)
    elif config.publish_rank:
        general = sum(min(config.publish_rank, *one) * sum(one) for one in linears)
    else:
        general = question.shape.drafter_parameters
    return general * max(config.adapters, 1)


def plan_registry(question: Question, replicas: int, versions_per_hour: float) -> RegistryPlan:
    config, settings = question.config, question.config.registry
    deltas = _FLOAT32 * adapter_floats(question)
    tables = config.alignment.successor_mb * 2**20 + _INT32 * config.vocabulary.capacity
    version = deltas + tables
    trained = deltas if config.alignment.method == "lora" else 3 * _FLOAT32 * _trained(question)
    state = _MOMENTS * trained if config.alignment.method == "lora" else trained
    if state > settings.max_blob_mb * 2**20:
        state = 0
    first = _canaries(question, replicas)
    second = replicas - first
    wave = max(first, second)
    stored = (settings.keep_versions + _SPARE_VERSIONS) * (version + state) / 1e6
    return RegistryPlan(
        version_mb=version / 1e6,
        state_mb=state / 1e6,
        first_wave=first,
        second_wave=second,
        pull_s=wave * version / 1e6 / question.hardware.network_mb_s,
        version_traffic_mb=replicas * version / 1e6,
        mb_s=versions_per_hour / 3600 * replicas * version / 1e6,
        calls_per_s=replicas / settings.poll_s + 2 * replicas / 30,
        stored_mb=stored,
        memory_mb=_FORKED * stored + wave * version / 1e6,
        buffers_mb=wave * version / 1e6,
    )


def _trained(question: Question) -> int:
    return question.shape.drafter_parameters * max(question.config.alignment.adapters, 1)


def _canaries(question: Question, replicas: int) -> int:
    if not question.config.rollout.canary or replicas < 2:
        return 0
    return max(1, math.floor(question.config.rollout.share * replicas))
