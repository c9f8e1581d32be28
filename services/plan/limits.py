"""What of all that a plan uses runs out first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.plan.aligner import AlignerPlan
from services.plan.decoding import DecodingPlan
from services.plan.figures import REDIS_CALLS
from services.plan.gateway import GatewayPlan
from services.plan.index import IndexPlan
from services.plan.question import Question
from services.plan.registry import RegistryPlan
from services.plan.traces import TracePlan
from services.registry_reader import BLOB_TIMEOUT_S

Costs = Literal["answers", "acceptance"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Something that there is only so much of.

    Attributes:
        advice: what to do where `share` comes near 1.
        costs: what is lost above 1: answers, or only what is learned and retrieved, which is acceptance.
    """

    name: str
    used: float
    available: float
    unit: str
    advice: str
    costs: Costs = "acceptance"

    @property
    def share(self) -> float:
        return self.used / self.available


def usages(
    question: Question,
    decoding: DecodingPlan,
    traces: TracePlan,
    aligner: AlignerPlan,
    registry: RegistryPlan,
    index: IndexPlan,
    gateway: GatewayPlan,
) -> tuple[Usage, ...]:
    """The fullest first."""
    hardware = question.hardware
    network = hardware.network_mb_s
    every = [
        Usage(
            "replicas",
            decoding.replicas,
            hardware.max_replicas,
            "",
            "more replicas, or several clusters",
            "answers",
        ),
        Usage(
            "aligner's thread",
            aligner.load,
            1.0,
            "of its time",
            "lower alignment.trace_mb_per_s: it learns from a sample, serving does not notice",
        ),
        Usage(
            "aligner's network",
            traces.mb_s,
            network,
            "MB/s",
            "lower alignment.trace_mb_per_s, or set alignment.trace_features to int8",
        ),
        Usage(
            "registry's network",
            registry.pull_s,
            BLOB_TIMEOUT_S,
            "s for a version",
            "a faster network, read replicas of Redis in registry.replica_url, or a lower alignment.rank",
        ),
        Usage(
            "registry's calls", registry.calls_per_s, REDIS_CALLS.value, "calls/s", "raise registry.poll_s"
        ),
        Usage(
            "token index",
            index.calls_per_s,
            index.most_calls_per_s,
            "calls/s",
            "a larger Qdrant, more of them, or a higher semantic.refresh_tokens",
        ),
        Usage(
            "gateway",
            gateway.pieces_per_s,
            gateway.most_pieces_per_s,
            "pieces/s",
            "raise serve.gateways",
            "answers",
        ),
    ]
    if hardware.gpus is not None:
        every.append(
            Usage(
                "GPUs",
                decoding.replicas + aligner.gpu_share,
                hardware.gpus,
                "",
                "more GPUs, or faster ones",
                "answers",
            )
        )
    return tuple(sorted(every, key=lambda one: -one.share))
