"""The manifests as `kubectl kustomize` renders them, and what they are held against."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from services.settings import config_from

Resource = dict[str, Any]

ROOT = Path(__file__).resolve().parents[3]
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
# KubeRay's schema is not part of this project: named by the environment, or beside the clone.
SCHEMA_VARIABLE = "EVOSPEC_RAYSERVICE_SCHEMA"
BESIDE = ROOT.parent / "shared" / "schemas" / "rayservice.v1.openapi.json"
# No package has the schemas of these: what we use of them.
OPERATED = {
    "PodMonitor": {"selector", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}


class UnknownKeyError(ValueError):
    """A Serve config holds keys that Ray does not read."""


def rendered(overlay: str) -> list[Resource]:
    """What `kubectl apply --kustomize` would send; skips where there is no kubectl."""
    return copy.deepcopy(_rendered(overlay))


@functools.cache
def _rendered(overlay: str) -> list[Resource]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl, which renders the manifests; no Python package brings it")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def one(resources: list[Resource], kind: str, name: str) -> Resource:
    found = [one for one in resources if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} resources are {kind} {name}"
    return found[0]


def pod_specs(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each pod's spec, with a name for messages."""
    for resource in resources:
        name, spec = resource["metadata"]["name"], resource.get("spec", {})
        if resource["kind"] == "RayService":
            for group, template in ray_groups(resource).items():
                yield f"{name}/{group}", template["template"]["spec"]
        elif resource["kind"] == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]["spec"]
        elif "template" in spec:
            yield name, spec["template"]["spec"]


def ray_groups(service: Resource) -> dict[str, dict[str, Any]]:
    """Head and worker groups by name."""
    cluster = service["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }


def check(resource: Resource) -> None:
    """Raises jsonschema.ValidationError, or pydantic's, when a resource is not what its kind is."""
    kind = resource["kind"]
    if kind == "RayService":
        check_ray_service(resource)
    elif kind in OPERATED:
        allowed = {name: {} for name in OPERATED[kind]}
        spec = {"properties": allowed, "required": sorted(allowed), "additionalProperties": False}
        jsonschema.validate(resource["spec"], spec)
    else:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def check_ray_service(resource: Resource) -> None:
    check_serve_config(resource["spec"]["serveConfigV2"])
    schema = ray_service_schema()
    if schema is not None:
        filled = copy.deepcopy(resource)
        _fill_in(filled, schema)
        jsonschema.validate(filled, schema)
    for group in ray_groups(resource).values():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def check_serve_config(text: str) -> None:
    """By Ray's own schema, which passes over unknown keys, and by the builder's reading of its arguments."""
    content = yaml.safe_load(text)
    understood = ServeDeploySchema.model_validate(content).model_dump(mode="json", exclude_unset=True)
    lost = list(_lost(content, understood))
    if lost:
        raise UnknownKeyError(", ".join(lost))
    for application in content["applications"]:
        config_from(application["args"], "args")


def _lost(given: Any, understood: Any, place: str = "") -> Iterator[str]:
    """Keys of `given` that are not in `understood`."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for key, value in given.items():
            if key not in understood:
                yield f"{place}{key}"
            else:
                yield from _lost(value, understood[key], f"{place}{key}.")
    elif isinstance(given, list) and isinstance(understood, list):
        for number, pair in enumerate(zip(given, understood, strict=True)):
            yield from _lost(*pair, f"{place}{number}.")


@functools.cache
def ray_service_schema() -> dict[str, Any] | None:
    """KubeRay's, in which unknown fields are errors; None where it is not at hand."""
    path = Path(os.environ.get(SCHEMA_VARIABLE, BESIDE))
    if not path.is_file():
        return None
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)


def _fill_in(value: Any, schema: dict[str, Any]) -> None:
    """Puts defaults where a resource leaves something out, as the API server does before it validates."""
    if isinstance(value, list):
        for item in value:
            _fill_in(item, schema.get("items", {}))
    elif isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                _fill_in(value[name], part)
        rest = schema.get("additionalProperties")
        if isinstance(rest, dict):
            for name in value.keys() - schema.get("properties", {}).keys():
                _fill_in(value[name], rest)
