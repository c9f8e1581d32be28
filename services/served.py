"""The models of an application, each with what its deployments and actors are made from."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from evospec.config import Config
from evospec.ports import RegistryFactory
from services.registry import open_registry, open_replica_registry


@dataclass(frozen=True, slots=True)
class Served:
    """A model of an application.

    Attributes:
        registry: opens its weight registry as replicas do; None when no adapters are followed.
        group: behind the names of its deployment and actors; empty for a single model.
    """

    config: Config
    registry: RegistryFactory | None
    group: str = ""

    @property
    def publishing_registry(self) -> RegistryFactory:
        """Opens the same registry as those do who publish and decide."""
        return functools.partial(open_registry, self.config.registry)


def served_models(config: Config) -> list[Served]:
    """What a configuration serves."""
    models = config.each_model()
    return [_served(model, f"-{model.served_name}" if len(models) > 1 else "") for model in models]


def aligns(config: Config) -> bool:
    """Whether there is an aligner, which needs a registry."""
    return config.alignment.enabled and config.model.drafter is not None


def retrieves(config: Config) -> bool:
    """Whether there is a token index."""
    return config.semantic.enabled and config.model.drafter is not None


def rolls_out(config: Config) -> bool:
    """Whether versions go through a canary here."""
    follows = config.registry.url is not None and config.model.drafter is not None
    return follows and config.rollout.canary


def _served(config: Config, group: str) -> Served:
    follows = config.registry.url is not None
    return Served(
        config, functools.partial(open_replica_registry, config.registry) if follows else None, group
    )
