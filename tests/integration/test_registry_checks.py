"""What the registry neither publishes nor fetches: damaged, forged, oversized or mislabelled versions."""

from __future__ import annotations

import random
from contextlib import closing

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import DecisionRefusedError, RegistryError, VersionMissingError, WireError
from evospec.wire import VersionState
from services.registry import RedisWeightRegistry, open_registry
from services.registry_contents import digest_of
from services.valkey import EmbeddedValkey
from tests.integration.registry_kit import blob_of, decide, manifest_of, publish, text
from tests.unit.test_manifest_fuzz import damage_text

KEY = "a signing key"


def test_damaged_blobs_are_refused(registry: RedisWeightRegistry, raw: Redis) -> None:
    publish(registry, 1)
    raw.setrange("test:w:1", 5, b"X")
    with pytest.raises(WireError, match="SHA-256"):
        registry.fetch(1)
    raw.set("test:w:1", blob_of(1)[:-1])
    with pytest.raises(WireError, match="bytes"):
        registry.fetch(1)
    raw.hset("test:m:1", "manifest", text(raw.hget("test:m:1", "manifest") or b"").replace("1.5", "1.6"))
    with pytest.raises(WireError, match="manifest does not match its digest"):
        registry.fetch(1)
    raw.hset("test:m:1", mapping={"manifest": "{}", "digest": digest_of("{}")})
    with pytest.raises(WireError, match="manifest is not valid"):
        registry.fetch(1)
    raw.delete("test:m:1")
    with pytest.raises(VersionMissingError, match="not in"):
        registry.fetch(1)


def test_damaged_manifests_and_blobs_are_never_fetched(registry: RedisWeightRegistry, raw: Redis) -> None:
    publish(registry, 1)
    manifest, blob = raw.hget("test:m:1", "manifest") or b"", blob_of(1)
    rng = random.Random(1)
    refused = set[tuple[bytes, bytes]]()
    while len(refused) < 300:
        damaged = damage_text(text(manifest), rng), damage_text(text(blob), rng)
        if manifest in damaged or blob in damaged:
            continue  # a change that undid itself
        raw.hset("test:m:1", "manifest", damaged[0])
        with pytest.raises(WireError, match="version 1: manifest does not match its digest"):
            registry.fetch(1)
        raw.hset("test:m:1", "manifest", manifest)
        raw.set("test:w:1", damaged[1])
        with pytest.raises(WireError, match="version 1: blob"):
            registry.fetch(1)
        raw.set("test:w:1", blob)
        refused.add(damaged)
    assert registry.fetch(1).blob == blob


@pytest.mark.parametrize("key", [None, KEY])
def test_a_damaged_training_state_is_refused(
    key: str | None, registry_config: RegistryConfig, raw: Redis
) -> None:
    with closing(open_registry(registry_config.model_copy(update={"signing_key": key}))) as registry:
        publish(registry, 1, training_state=b"moments of the first")
        publish(registry, 2, training_state=b"moments of the second")
        assert registry.fetch_training_state(2) == b"moments of the second"
        raw.setrange("test:t:1", 5, b"X")
        with pytest.raises(WireError, match="version 1: training state does not match its seal"):
            registry.fetch_training_state(1)
        if key is None:
            return
        raw.copy("test:t:2", "test:t:1", replace=True)
        raw.hset("test:m:1", "seal", raw.hget("test:m:2", "seal") or b"")
        with pytest.raises(WireError, match="seal"):  # that of another version
            registry.fetch_training_state(1)


def test_a_state_that_is_none_is_refused(registry: RedisWeightRegistry, raw: Redis) -> None:
    publish(registry, 1)
    raw.hset("test:m:1", "state", "best")
    with pytest.raises(WireError, match="state is b'best'"):
        registry.fetch(1)
    kept = registry.kept_versions()
    assert (kept.manifests, kept.states) == ({}, {})
    assert kept.damaged == {1: "version 1: its state is b'best', which is none"}


def test_the_manifest_of_another_version_is_refused(registry: RedisWeightRegistry, raw: Redis) -> None:
    """Signatures don't help here: an old version, signed, put in the place of a new one."""
    publish(registry, 1)
    publish(registry, 2)
    raw.copy("test:w:1", "test:w:2", replace=True)
    raw.copy("test:m:1", "test:m:2", replace=True)
    with pytest.raises(WireError, match="manifest is that of version 1"):
        registry.fetch(2)


def test_sizes_are_checked_before_anything_is_read(
    redis_server: EmbeddedValkey, registry: RedisWeightRegistry, raw: Redis
) -> None:
    publish(registry, 1)
    with closing(RedisWeightRegistry(redis_server.url, namespace="test", max_blob_bytes=100)) as small:
        with pytest.raises(WireError, match="at most 100 are read"):
            small.fetch(1)
        with pytest.raises(RegistryError, match=r"blob has 260 bytes, more than registry\.max_blob_mb"):
            publish(small, 2)
        registry.publish(manifest_of(2, b"tiny"), b"tiny", bytes(101))
        with pytest.raises(WireError, match="training state has 101 bytes, at most 100"):
            small.fetch_training_state(2)
    raw.hset("test:m:1", "manifest", bytes(2 << 20))
    with pytest.raises(WireError, match="manifest has"):
        registry.fetch(1)
    endless = manifest_of(3, b"tiny").model_copy(update={"metrics": {"x" * (2 << 20): 1.0}})
    with pytest.raises(WireError, match="manifest is larger than"):
        registry.publish(endless, b"tiny")


@pytest.mark.usefixtures("raw")
def test_versions_go_without_a_training_state_that_is_too_large(
    redis_server: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(RedisWeightRegistry(redis_server.url, namespace="test", max_blob_bytes=100)) as small:
        for version, size in ((1, 100), (2, 101), (3, 102)):
            small.publish(manifest_of(version, b"tiny"), b"tiny", bytes(size))
        assert [len(small.fetch_training_state(version) or b"") for version in (1, 2, 3)] == [100, 0, 0]
        assert small.fetch(3).blob == b"tiny"
    assert caplog.text.count("training states of 101 bytes are not stored") == 1
    assert "102" not in caplog.text


def test_manifests_that_lie_are_not_published(registry: RedisWeightRegistry) -> None:
    with pytest.raises(WireError, match="SHA-256"):
        registry.publish(manifest_of(1, b"one"), b"two")
    unreadable = manifest_of(1, b"one").model_copy(update={"metrics": {"gain": float("nan")}})
    with pytest.raises(WireError, match="not valid"):
        registry.publish(unreadable, b"one")
    assert registry.rollout().stable == 0


@pytest.mark.parametrize("state", ["canary", "revoked"])
def test_a_version_starts_as_candidate_or_stable(state: VersionState, registry: RedisWeightRegistry) -> None:
    with pytest.raises(DecisionRefusedError, match=f"marked {state}"):
        publish(registry, 1, state=state)


def test_signed_manifests(registry_config: RegistryConfig, registry: RedisWeightRegistry) -> None:
    signing = registry_config.model_copy(update={"signing_key": KEY})
    other = registry_config.model_copy(update={"signing_key": "another key"})
    with closing(open_registry(signing)) as signer, closing(open_registry(other)) as stranger:
        publish(signer, 1)
        assert signer.fetch(1).manifest.signature is not None
        assert registry.fetch(1).blob == blob_of(1)  # who has no key can't check
        with pytest.raises(WireError, match="signature does not match"):
            stranger.fetch(1)
        publish(registry, 2)
        with pytest.raises(WireError, match="not signed"):
            signer.fetch(2)
        decide(registry, "revoke", 1)
        assert signer.fetch(1).manifest.state == "revoked"  # which the signature leaves out
