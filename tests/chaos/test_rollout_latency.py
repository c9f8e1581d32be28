"""How long a version takes to reach all replicas, and what its arrival costs the requests in flight."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import numpy as np
import pytest

from evospec.models.adapter import AdapterWeights
from tests.chaos.conftest import OneRig
from tests.chaos.kit.learned_models import LearnedModels, wide_models
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.rig import Rig, rig_config, started_rig

PART = "Rollout"
REPLICAS = 8
PUBLICATIONS = 20
RANK = 256
LEAST_BYTES = 5_000_000
BAR_S = 2.0

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LearnedModels:
    return wide_models(tmp_path_factory.mktemp("wide"))


@pytest.fixture
def many_replicas(one_rig: OneRig, wide: LearnedModels, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    def start() -> AbstractContextManager[Rig]:
        return started_rig(wide, rig_config(wide, REPLICAS), tmp_path_factory.mktemp("registry"))

    rig = one_rig.get("many replicas", start)
    rig.repair()
    return rig


def test_versions_reach_eight_replicas(many_replicas: Rig) -> None:
    rig = many_replicas
    title = f"{PUBLICATIONS} versions of 5 MB to {REPLICAS} replicas"
    seconds: list[float] = []
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        for seed in range(PUBLICATIONS):
            tensors = rig.harmless_version(seed, RANK)
            blob = AdapterWeights(0, tensors).to_bytes()
            assert len(blob) >= LEAST_BYTES
            names = rig.names()
            began = time.monotonic()
            version = publisher.publish(tensors, blob=blob)

            def arrived(version: int = version, names: set[str] = names) -> bool:
                acknowledged = publisher.registry.acknowledgements()
                return all(acknowledged.get(name) == version for name in names)

            wait_for(arrived)
            seconds.append(time.monotonic() - began)
        p50, p95 = np.quantile(seconds, (0.5, 0.95))
        what = "from a publication until the last replica has acknowledged it: 95th percentile"
        scenario.took(float(p95), what, bar_s=BAR_S)
        scenario.notes.append(f"median {p50:.2f} s, longest {max(seconds):.2f} s")
