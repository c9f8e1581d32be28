"""Servers and stores for integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from services.registry import RedisWeightRegistry, open_registry
from services.valkey import EmbeddedValkey
from tests.integration.qdrant_rest import Qdrant
from tests.integration.registry_kit import decide, publish, server_binary


@pytest.fixture(scope="session", params=["valkey", "redis"])
def redis_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(binary=server_binary(request.param)) as server:
        yield server


@pytest.fixture
def raw(redis_server: EmbeddedValkey) -> Iterator[Redis]:
    """A plain client of an empty server."""
    with closing(Redis.from_url(redis_server.url)) as client:
        client.flushall()
        yield client


@pytest.fixture
def registry_config(redis_server: EmbeddedValkey, raw: Redis) -> RegistryConfig:
    return RegistryConfig(url=redis_server.url, namespace="test", keep_versions=3)


@pytest.fixture
def registry(registry_config: RegistryConfig) -> Iterator[RedisWeightRegistry]:
    with closing(open_registry(registry_config)) as opened:
        yield opened


@pytest.fixture
def tried(registry: RedisWeightRegistry) -> RedisWeightRegistry:
    """Versions 1 and 2 are stable, 3 is in its canary on replica a."""
    publish(registry, 1)
    publish(registry, 2)
    publish(registry, 3, state="candidate")
    decide(registry, "canary", 3, "a")
    return registry


@pytest.fixture
def qdrant() -> Iterator[Qdrant]:
    with Qdrant() as server:
        yield server
