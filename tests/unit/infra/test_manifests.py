from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from services.settings import ConfigError
from tests.unit.infra.manifests import (
    OVERLAYS,
    Resource,
    UnknownKeyError,
    check,
    one,
    ray_groups,
    ray_service_schema,
    rendered,
)

Plant = Callable[[Resource], None]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_to_valid_resources(overlay: str) -> None:
    resources = rendered(overlay)
    assert {"RayService", "StatefulSet", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor"} <= {
        resource["kind"] for resource in resources
    }
    for resource in resources:
        check(resource)


def _in_serve_config(change: Callable[[dict[str, Any]], object]) -> Plant:
    def plant(service: Resource) -> None:
        content = yaml.safe_load(service["spec"]["serveConfigV2"])
        change(content["applications"][0])
        service["spec"]["serveConfigV2"] = yaml.safe_dump(content)

    return plant


def _container(service: Resource) -> dict[str, Any]:
    found: dict[str, Any] = ray_groups(service)["replicas"]["template"]["spec"]["containers"][0]
    return found


SERVE_TYPOS: dict[str, Plant] = {
    "deployment option": _in_serve_config(lambda app: app["deployments"][1].update(num_replcas=2)),
    "actor option": _in_serve_config(
        lambda app: app["deployments"][1]["ray_actor_options"].update(num_gpu=1)
    ),
    "kind of value": _in_serve_config(lambda app: app["deployments"][1].update(max_queued_requests="many")),
    "setting of ours": _in_serve_config(lambda app: app["args"]["serve"].update(cpus_per_replcia=1)),
    "value of ours": _in_serve_config(lambda app: app["args"]["serve"].update(routing="random")),
}
POD_TYPOS: dict[str, Plant] = {
    "field of a container": lambda service: _container(service).update(imagePullPolcy="Always"),
    "kind of port": lambda service: _container(service)["ports"][0].update(containerPort="http"),
}
SERVICE_TYPOS: dict[str, Plant] = {
    "field": lambda service: service["spec"].update(upgradeStategy={"type": "NewCluster"}),
    "nested field": lambda service: service["spec"]["rayClusterConfig"]["authOptions"].update(mod="token"),
    "value": lambda service: service["spec"]["rayClusterConfig"]["authOptions"].update(mode="tokens"),
    "field of a group": lambda service: ray_groups(service)["replicas"].update(maxReplica=4),
    "missing": lambda service: ray_groups(service)["replicas"].pop("groupName"),
}


@pytest.mark.parametrize(
    "plant", [*SERVE_TYPOS.values(), *POD_TYPOS.values()], ids=[*SERVE_TYPOS, *POD_TYPOS]
)
def test_a_typo_in_the_ray_service_is_caught(plant: Plant) -> None:
    service = one(rendered("multi-gpu"), "RayService", "evospec")
    plant(service)
    with pytest.raises((jsonschema.ValidationError, ValidationError, ConfigError, UnknownKeyError)):
        check(service)


@pytest.mark.skipif(ray_service_schema() is None, reason="KubeRay's schema is not at hand")
@pytest.mark.parametrize("plant", SERVICE_TYPOS.values(), ids=SERVICE_TYPOS)
def test_a_typo_in_what_kuberay_reads_is_caught(plant: Plant) -> None:
    service = one(rendered("multi-gpu"), "RayService", "evospec")
    plant(service)
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        check(service)


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [
        ("StatefulSet", "registry", "serviceNam"),
        ("NetworkPolicy", "ray", "policyType"),
        ("PodDisruptionBudget", "replicas", "minAvailabel"),
        ("CronJob", "qdrant-snapshots", "schedul"),
        ("Service", "qdrant", "port"),
        ("PodMonitor", "evospec", "podMetricsEndpoint"),
    ],
)
def test_a_typo_in_another_resource_is_caught(kind: str, name: str, field: str) -> None:
    resource = one(rendered("cpu-demo"), kind, name)
    resource["spec"][field] = 1
    with pytest.raises(jsonschema.ValidationError):
        check(resource)
