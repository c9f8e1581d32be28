"""Where in a cluster something runs, and what one machine must offer so that all of it can run there."""

from __future__ import annotations

from collections.abc import Sequence

from evospec.config import Config

SHARE = 0.001  # of a resource that only says where: a thousand fit on a node
BESIDE_REPLICAS = 4  # their keeper, an aligner, a token index, a rollout controller


def marked(resource: str | None) -> dict[str, float]:
    """Ray's `resources` of what runs on the nodes that have a custom resource; None is anywhere."""
    return {} if resource is None else {resource: SHARE}


def named_resources(models: Sequence[Config]) -> dict[str, float]:
    """All custom resources that these configurations name, one of each."""
    names = {name for model in models for name in (model.serve.resource, model.alignment.resource)}
    return dict.fromkeys(sorted(name for name in names if name is not None), 1.0)


def reserved_cpus(models: Sequence[Config]) -> float:
    """Processors that everything reserves when there are as many replicas as there may be."""
    serving = [model.serve for model in models]
    replicas = sum(one.most_replicas * one.cpus_per_replica for one in serving)
    actors = sum((one.gateways + BESIDE_REPLICAS) * one.cpus_per_actor for one in serving)
    return replicas + actors
