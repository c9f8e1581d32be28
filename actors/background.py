"""Actors that must not take processor time from decoding."""

from __future__ import annotations

import os

from actors.aligner import Aligner
from evospec.config import Config
from evospec.ports import RegistryFactory

NICENESS = 15


class BackgroundAligner(Aligner):
    """The aligner in a process of its own, at low priority: replicas that share its processors go first."""

    def __init__(self, config: Config, registry: RegistryFactory) -> None:
        os.nice(NICENESS)
        super().__init__(config, registry)
