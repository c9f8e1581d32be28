"""`evospec weights` against real Redis and Valkey servers."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from evospec.config import RegistryConfig
from services.cli import app
from services.registry import RedisWeightRegistry
from tests.integration.registry_kit import blob_of, manifest_of, publish


@pytest.fixture
def filled(registry: RedisWeightRegistry) -> RedisWeightRegistry:
    """Four versions published where three are kept; one replica is behind."""
    for version in range(1, 5):
        publish(registry, version)
    registry.acknowledge("first", 4)
    registry.acknowledge("second", 3)
    return registry


def weights(config: RegistryConfig, *arguments: str) -> Result:
    options = ["--registry", str(config.url)]
    environment = {"EVOSPEC_REGISTRY__NAMESPACE": config.namespace}
    return CliRunner().invoke(app, ["weights", *arguments, *options], env=environment)


@pytest.mark.usefixtures("filled")
def test_list_shows_what_is_kept_and_who_runs_it(registry_config: RegistryConfig) -> None:
    result = weights(registry_config, "list", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["current"] == 4
    assert [version["version"] for version in found["versions"]] == [2, 3, 4]
    assert found["replicas"] == {"first": 4, "second": 3}
    table = weights(registry_config, "list").stdout
    assert "4 *" in table
    assert "second" in table


@pytest.mark.usefixtures("registry")
def test_an_empty_registry_says_so(registry_config: RegistryConfig) -> None:
    assert "nothing was published" in weights(registry_config, "list").stdout


@pytest.mark.usefixtures("filled")
def test_show_gives_the_manifest(registry_config: RegistryConfig) -> None:
    found = json.loads(weights(registry_config, "show", "3", "--json").stdout)
    assert (found["version"], found["parent"]) == (3, 2)
    assert manifest_of(3, blob_of(3)).sha256 in weights(registry_config, "show", "3").stdout


@pytest.mark.usefixtures("filled")
def test_a_version_that_is_not_kept_is_one_line(registry_config: RegistryConfig) -> None:
    result = weights(registry_config, "show", "1")
    assert result.exit_code == 2
    assert result.stderr.strip() == "error: the registry has no version 1; it keeps 2, 3, 4"
