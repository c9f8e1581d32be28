from __future__ import annotations

import pytest

from evospec.config import Config
from services.placement import marked, named_resources, reserved_cpus


def test_a_resource_only_says_where() -> None:
    assert marked(None) == {}
    assert marked("decoding") == {"decoding": 0.001}


def test_one_machine_offers_what_a_cluster_would() -> None:
    config = Config.model_validate(
        {
            "serve": {
                "resource": "decoding",
                "max_replicas": 3,
                "cpus_per_replica": 2,
                "cpus_per_actor": 0.5,
            },
            "alignment": {"resource": "aligner"},
        }
    )
    assert named_resources([Config(), config]) == {"aligner": 1.0, "decoding": 1.0}
    assert reserved_cpus([config]) == pytest.approx(3 * 2 + 5 * 0.5)
    assert reserved_cpus([Config()]) == 1
