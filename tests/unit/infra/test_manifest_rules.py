"""What all manifests keep to, beyond being valid."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from evospec.config import Config
from infra.kubernetes import render
from services.serve_environment import OF_NODES
from services.settings import config_from
from tests.unit.infra.manifests import OVERLAYS, ROOT, Resource, one, pod_specs, ray_groups, rendered

SECRETS = {"evospec", "registry-users", "gcs-store"}  # docs/kubernetes.md says how they are made


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> list[Resource]:
    return rendered(request.param)


def containers(resources: list[Resource]) -> list[dict[str, Any]]:
    return [container for _, spec in pod_specs(resources) for container in spec["containers"]]


def test_pods_keep_to_the_restricted_standard(resources: list[Resource]) -> None:
    labels = one(resources, "Namespace", "evospec")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, spec in pod_specs(resources):
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        assert all(volume.keys() & {"secret", "emptyDir"} for volume in spec.get("volumes", [])), name
    for container in containers(resources):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_only_rays_head_has_a_token_of_kubernetes(resources: list[Resource]) -> None:
    with_token = [
        name for name, spec in pod_specs(resources) if spec.get("automountServiceAccountToken", True)
    ]
    assert with_token == ["evospec/head"]


def test_images_have_tags_and_containers_have_limits(resources: list[Resource]) -> None:
    for container in containers(resources):
        assert ":" in container["image"], container["image"]
        assert not container["image"].endswith(":latest")
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_secrets_are_only_named(resources: list[Resource]) -> None:
    assert not [resource for resource in resources if resource["kind"] == "Secret"]
    text = json.dumps(resources)
    assert "password=" not in text
    named = {found["name"] for found in _every(resources, "secretRef")}
    named |= {found["name"] for found in _every(resources, "secretKeyRef")}
    named |= {found["secretName"] for found in _every(resources, "secret")}
    assert named == SECRETS
    for container in containers(resources):
        for variable in container.get("env", []):
            assert not ("KEY" in variable["name"] and "value" in variable), variable["name"]


def test_rays_pods_have_the_environment_that_one_machine_has(resources: list[Resource]) -> None:
    assert one(resources, "ConfigMap", "ray-environment")["data"] == OF_NODES
    for group in ray_groups(one(resources, "RayService", "evospec")).values():
        sources = group["template"]["spec"]["containers"][0]["envFrom"]
        assert {"configMapRef": {"name": "ray-environment"}} in sources
        assert {"secretRef": {"name": "evospec"}} in sources


def test_the_head_gets_no_work(resources: list[Resource]) -> None:
    service = one(resources, "RayService", "evospec")
    head = ray_groups(service)["head"]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"]) == ("0", "0")
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    for deployment in _serve_config(service)["applications"][0]["deployments"]:
        assert deployment["ray_actor_options"]["num_cpus"] > 0, deployment["name"]
    assert _config(service).serve.cpus_per_actor > 0  # of the actors that are no deployments


def test_the_operator_knows_the_release_of_ray_in_the_image(resources: list[Resource]) -> None:
    cluster = one(resources, "RayService", "evospec")["spec"]["rayClusterConfig"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pinned


def test_gcs_state_is_kept_apart_from_weights(resources: list[Resource]) -> None:
    cluster = one(resources, "RayService", "evospec")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "gcs-store:6379"
    assert cluster["authOptions"]["mode"] == "token"
    one(resources, "Service", "gcs-store")
    one(resources, "Service", "registry")


def test_what_replicas_and_aligner_ask_for_some_worker_has(resources: list[Resource]) -> None:
    service = one(resources, "RayService", "evospec")
    config = _config(service)
    groups = ray_groups(service)
    for resource, gpus in (
        (config.serve.resource, config.serve.gpus_per_replica),
        (config.alignment.resource, config.alignment.gpus),
    ):
        if resource is None:
            continue
        having = [group for group in groups.values() if resource in _custom_resources(group)]
        assert len(having) == 1, resource
        assert _gpus(having[0]) >= gpus, resource
    both = {config.serve.resource, config.alignment.resource}
    if len(both) == 1:  # on the same GPU
        assert config.serve.gpus_per_replica + config.alignment.gpus <= 1


def test_every_pod_may_only_do_what_a_network_policy_says(resources: list[Resource]) -> None:
    nothing = one(resources, "NetworkPolicy", "nothing-else")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for resource in resources:
        if resource["kind"] == "NetworkPolicy":
            for rule in resource["spec"].get("ingress", []):
                assert rule.get("from"), resource["metadata"]["name"]  # nobody means everybody


def test_policies_and_budgets_find_pods(resources: list[Resource]) -> None:
    labels = list(_pod_labels(resources))
    outside = ("evospec/client", "evospec/operator", "ray.io/node-type")  # others make these pods
    for resource in resources:
        if resource["kind"] not in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service"):
            continue
        spec = resource["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = selector.get("matchLabels", selector)
        if wanted and not any(name in wanted for name in outside):
            assert any(wanted.items() <= one.items() for one in labels), resource["metadata"]["name"]


def test_made_files_are_up_to_date() -> None:
    for path, content in render.pages().items():
        assert path.read_text(encoding="utf-8") == content, f"{path}: python infra/kubernetes/render.py"


def test_the_service_serves_what_is_dumped(resources: list[Resource]) -> None:
    service = one(resources, "RayService", "evospec")
    config = _config(service)
    groups = ray_groups(service)
    sizes = render.workers(_with_counts(service, config))
    assert (groups["replicas"]["minReplicas"], groups["replicas"]["maxReplicas"]) == (
        sizes["min"],
        sizes["max"],
    )
    assert one(resources, "PodDisruptionBudget", "replicas")["spec"]["minAvailable"] == sizes["undisturbed"]


@pytest.mark.parametrize(
    ("serve", "sizes"),
    [
        ({"replicas": 3}, (3, 3, 2)),
        ({"replicas": 1, "max_replicas": 4}, (1, 4, 1)),
        ({"replicas": 5, "gpus_per_replica": 0.5}, (3, 3, 2)),
        ({"replicas": 2, "gpus_per_replica": 0.75}, (2, 2, 1)),
    ],
)
def test_workers_are_as_many_as_replicas_need(serve: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    found = render.workers(Config.model_validate({"serve": serve}))
    assert tuple(found.values()) == sizes


def test_a_replica_larger_than_a_worker_is_refused() -> None:
    with pytest.raises(render.TooLargeError, match="gpus_per_replica: 2"):
        render.workers(Config.model_validate({"serve": {"gpus_per_replica": 2}}))


def _serve_config(service: Resource) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return content


def _config(service: Resource) -> Config:
    return config_from(_serve_config(service)["applications"][0]["args"], "args")


def _with_counts(service: Resource, config: Config) -> Config:
    """Numbers of replicas are in the deployment's options alone."""
    deployments = {one["name"]: one for one in _serve_config(service)["applications"][0]["deployments"]}
    replicas = deployments["DecodingReplica"]
    scaling = replicas.get("autoscaling_config", {})
    counts = {
        "replicas": scaling.get("min_replicas", replicas.get("num_replicas")),
        "max_replicas": scaling.get("max_replicas"),
    }
    return config.model_copy(update={"serve": config.serve.model_copy(update=counts)})


def _custom_resources(group: dict[str, Any]) -> dict[str, float]:
    """As a shell would pass them on: the parameter is quoted once more."""
    quoted = group["rayStartParams"].get("resources", '"{}"')
    found: dict[str, float] = json.loads(json.loads(quoted))
    return found


def _gpus(group: dict[str, Any]) -> int:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


def _pod_labels(resources: list[Resource]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for resource in resources:
        spec = resource.get("spec", {})
        if resource["kind"] == "RayService":
            found += [group["template"]["metadata"]["labels"] for group in ray_groups(resource).values()]
        elif resource["kind"] == "CronJob":
            found.append(spec["jobTemplate"]["spec"]["template"]["metadata"]["labels"])
        elif "template" in spec:
            found.append(spec["template"]["metadata"]["labels"])
    return found


def _every(value: Any, key: str) -> list[dict[str, Any]]:
    """What stands under a key, anywhere."""
    if isinstance(value, list):
        return [found for item in value for found in _every(item, key)]
    if not isinstance(value, dict):
        return []
    here = [value[key]] if isinstance(value.get(key), dict) else []
    return here + [found for part in value.values() for found in _every(part, key)]
