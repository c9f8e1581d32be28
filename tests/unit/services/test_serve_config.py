from __future__ import annotations

from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from evospec.config import Config
from services.app import build, build_application
from services.secret_settings import SecretInListError
from services.serve_config import deployments, dump, serve_config
from services.serve_environment import OF_NODES
from services.served import served_models
from services.settings import ConfigError, config_from

REGISTRY = "EVOSPEC_REGISTRY__URL"
URL = "redis://aligner:pass@registry:6379/0"


def config(**values: Any) -> Config:
    return Config.model_validate(values)


def application(settings: Config) -> dict[str, Any]:
    found: dict[str, Any] = serve_config(settings)["applications"][0]
    return found


def test_it_is_valid_and_names_the_builder() -> None:
    written = yaml.safe_load(dump(config(serve={"host": "::", "replicas": 3})))
    ServeDeploySchema.model_validate(written)
    assert written["http_options"] == {"host": "::", "port": 8000}
    assert written["applications"][0]["import_path"] == "services.app:build"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"serve": {"replicas": 2, "max_replicas": 5, "gpus_per_replica": 0.5, "routing": "domain"}},
        {"models": [{"name": "a", "replicas": 2}, {"name": "b", "model": {"drafter": None}}]},
        {"model": {"drafter": None}},
    ],
)
def test_a_cluster_gets_the_deployments_of_one_machine(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """What the builder makes of the arguments, with the options of the Serve config above it."""
    monkeypatch.setenv(REGISTRY, URL)
    settings = config_from(values, "file")
    local = deployments(build_application(served_models(settings)))
    dumped = application(settings)
    built = {one["name"]: one for one in deployments(build(dumped["args"]))}
    assert dumped["deployments"] == local
    assert [built[one["name"]] | one for one in dumped["deployments"]] == [
        built[one["name"]] | one for one in local
    ]
    assert built.keys() == {one["name"] for one in local}


def test_limits_do_not_start_the_application_anew() -> None:
    one = application(config(serve={"replicas": 1}))
    other = application(
        config(serve={"replicas": 4, "drain_s": 5, "request_timeout_s": 9, "max_queued_requests": 7})
    )
    assert one["args"] == other["args"]
    assert one["deployments"] != other["deployments"]
    assert application(config(engine={"max_batch": 4}))["args"] != one["args"]


def test_secrets_are_named_and_not_shown() -> None:
    settings = config(
        registry={"url": URL, "replica_url": URL, "signing_key": "sign-me", "namespace": "mine"},
        semantic={"url": "http://q:6333", "api_key": "let-me-in"},
        access={"keys": [{"name": "a", "sha256": "0" * 64}]},
    )
    text = dump(settings)
    for secret in ("pass", "sign-me", "let-me-in", "0" * 64):
        assert secret not in text
    for variable in (REGISTRY, "EVOSPEC_REGISTRY__SIGNING_KEY", "EVOSPEC_ACCESS__KEYS"):
        assert f"#   {variable} (secret)\n" in text
    for name, value in OF_NODES.items():
        assert f"#   {name}={value}\n" in text
    assert application(settings)["args"] == {
        "registry": {"namespace": "mine"},
        "semantic": {"url": "http://q:6333"},
    }


def test_a_secret_in_a_list_is_refused() -> None:
    settings = config(models=[{"name": "a", "semantic": {"url": "http://q", "api_key": "k"}}])
    with pytest.raises(SecretInListError, match=r"models: a has a semantic\.api_key"):
        serve_config(settings)


def test_a_free_port_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve\.port: 0"):
        serve_config(config(serve={"port": 0}))


def test_a_cluster_without_a_registry_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REGISTRY, raising=False)
    with pytest.raises(ConfigError, match="set EVOSPEC_REGISTRY__URL on all of Ray's nodes"):
        build({})
    build({"alignment": {"enabled": False}})


def test_a_typo_in_the_arguments_is_told_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^args of the Serve config: unknown key serve\.replcias"):
        build({"serve": {"replcias": 2}})
