"""The actors beside the replicas as they run on Ray, each in a process: with their counters exported."""

from __future__ import annotations

import os
from collections.abc import Callable

from actors import control_metrics
from actors.aligner import Aligner
from actors.rollout_controller import RolloutController
from actors.series import Exporter, export_regularly
from actors.status import ReplicaStatus
from evospec.config import Config
from evospec.ports import RegistryFactory

NICENESS = 15


class WatchedAligner(Aligner):
    """At low priority: replicas that share its processors go first."""

    def __init__(self, config: Config, registry: RegistryFactory) -> None:
        os.nice(NICENESS)
        super().__init__(config, registry)
        export_regularly(Exporter(control_metrics.ALIGNER, _tags(config)), self.status)


class WatchedRolloutController(RolloutController):
    def __init__(
        self, config: Config, registry: RegistryFactory, replicas: Callable[[], list[ReplicaStatus]]
    ) -> None:
        super().__init__(config, registry, replicas)
        export_regularly(Exporter(control_metrics.ROLLOUT, _tags(config)), self.status)


def _tags(config: Config) -> dict[str, str]:
    return {"model_name": config.served_name}
