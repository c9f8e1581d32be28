"""A whole plan, from a question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from services.plan.aligner import AlignerPlan, plan_aligner
from services.plan.assumptions import assumptions
from services.plan.decoding import DecodingPlan, plan_decoding
from services.plan.gateway import GatewayPlan, plan_gateway
from services.plan.index import IndexPlan, plan_index
from services.plan.limits import Usage, usages
from services.plan.question import Question
from services.plan.registry import RegistryPlan, plan_registry
from services.plan.traces import TracePlan, plan_traces


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load takes.

    Attributes:
        limits: of everything that there is only so much of, the fullest first.
    """

    question: Question
    decoding: DecodingPlan
    traces: TracePlan
    aligner: AlignerPlan
    registry: RegistryPlan
    index: IndexPlan
    gateway: GatewayPlan
    limits: tuple[Usage, ...]

    @property
    def first_limit(self) -> Usage:
        return self.limits[0]

    @property
    def fits(self) -> bool:
        """Whether there is enough of all that answers need."""
        return all(one.share <= 1 for one in self.limits if one.costs == "answers")

    def summary(self) -> dict[str, float | str]:
        """What grows with a cluster."""
        return {
            "replicas": self.decoding.replicas,
            "requests_per_s": self.question.load.requests_per_s,
            "tokens_per_s": self.decoding.tokens_per_s,
            "trace_mb_per_s": self.traces.mb_s,
            "aligner_load": self.aligner.load,
            "version_traffic_mb": self.registry.version_traffic_mb,
            "pull_s": self.registry.pull_s,
            "registry_calls_per_s": self.registry.calls_per_s,
            "lookups_per_s": self.index.lookups_per_s,
            "index_mb_per_s": self.index.mb_s,
            "gateways": self.gateway.needed,
            "first_limit": self.first_limit.name,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        question = self.question
        return {
            "schema": 1,
            "question": {
                "load": asdict(question.load),
                "model": asdict(question.shape),
                "gpu": asdict(question.hardware.gpu),
                "aligner_gpu": question.hardware.trainer.name,
                "acceptance": question.acceptance,
                "utilisation": question.utilisation,
                "max_wait_s": question.max_wait_s,
                "traced": question.traced,
            },
            "fits": self.fits,
            "first_limit": self.first_limit.name,
            "limits": [asdict(one) | {"share": one.share} for one in self.limits],
            "decoding": asdict(self.decoding),
            "traces": asdict(self.traces),
            "aligner": asdict(self.aligner),
            "registry": asdict(self.registry),
            "index": asdict(self.index),
            "gateway": asdict(self.gateway),
            "scale": [one.summary() for one in scaled(self)],
            "assumptions": [asdict(one) for one in assumptions(question)],
        }


SCALE = (1, 10, 100, 1_000)


def scaled(base: Plan, sizes: Iterable[int] = SCALE) -> tuple[Plan, ...]:
    """Clusters of other sizes whose replicas have as much to do each, in the same batches."""
    question, each = base.question, base.question.load.requests_per_s / base.decoding.replicas
    plans = []
    for size in sizes:
        load = replace(question.load, requests_per_s=size * each)
        plans.append(_plan(replace(question, load=load, batch=base.decoding.batch), size))
    return tuple(plans)


def plan(question: Question) -> Plan:
    """Raises PlanError: the model does not fit the GPU."""
    return _plan(question, None)


def _plan(question: Question, replicas: int | None) -> Plan:
    learns = question.config.alignment.enabled and question.traced > 0
    traced_mb_s = question.config.alignment.trace_mb_per_s if learns else 0.0
    decoding = plan_decoding(question, traced_mb_s, replicas)
    traces = plan_traces(question, decoding.replicas)
    aligner = plan_aligner(question, traces, decoding.replicas)
    registry = plan_registry(question, decoding.replicas, aligner.versions_per_hour)
    index = plan_index(question)
    gateway = plan_gateway(question, decoding.under_way)
    parts = (decoding, traces, aligner, registry, index, gateway)
    return Plan(question, *parts, limits=usages(question, *parts))
