"""Versions that no replica may take up, published straight to the registry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evospec.wire import Decision, Fingerprints
from services.registry import open_registry
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.rig import Rig
from tests.chaos.kit.versions import HandPublisher

PART = "Bad versions"
INPUTS, OUTPUTS = 96, 32  # of the tiny drafter's `fc`
OTHERS = Fingerprints(target="another", drafter="another", tokenizer="another")

Publish = Callable[[Rig, HandPublisher], int]


def adapter(value: float, inputs: int = INPUTS) -> dict[str, Tensor]:
    return {"fc.lora_a": torch.full((1, inputs), value), "fc.lora_b": torch.full((OUTPUTS, 1), value)}


def nan(_: Rig, publisher: HandPublisher) -> int:
    return publisher.publish(adapter(torch.nan))


def absurdly_large(_: Rig, publisher: HandPublisher) -> int:
    return publisher.publish(adapter(1e6))


def wrong_shape(_: Rig, publisher: HandPublisher) -> int:
    return publisher.publish(adapter(1e-3, inputs=INPUTS - 1))


def no_safetensors(_: Rig, publisher: HandPublisher) -> int:
    return publisher.publish(adapter(1e-3), blob=b"these are no tensors")


def wrong_target(_: Rig, publisher: HandPublisher) -> int:
    return replace(publisher, fingerprints=OTHERS).publish(adapter(1e-3))


def foreign_signature(rig: Rig, publisher: HandPublisher) -> int:
    settings = {"url": rig.server.direct_url, "signing_key": "not the cluster's"}
    with closing(open_registry(rig.cluster.config.registry.model_copy(update=settings))) as registry:
        return replace(publisher, registry=registry).publish(adapter(2e-3))


def damaged(seed: int, damage: Callable[[bytes], bytes], part: str = "w") -> Publish:
    """What is stored goes bad before a replica has seen it: `w` the bytes, `m` the manifest."""

    def publish(rig: Rig, publisher: HandPublisher) -> int:
        rig.server.proxy.refuse()
        version = publisher.publish(rig.harmless_version(seed))
        key = f"{rig.cluster.config.registry.namespace}:{part}:{version}"
        with closing(rig.server.client()) as client:
            if part == "w":
                client.set(key, damage(as_bytes(client.get(key))))
            else:
                client.hset(key, "manifest", damage(as_bytes(client.hget(key, "manifest"))))
        rig.server.proxy.restore()
        return version

    return publish


def as_bytes(stored: object) -> bytes:
    assert isinstance(stored, bytes)
    return stored


def half(stored: bytes) -> bytes:
    return stored[: len(stored) // 2]


def one_bit_flipped(stored: bytes) -> bytes:
    return stored[:-1] + bytes([stored[-1] ^ 1])


@pytest.mark.parametrize(
    ("title", "publish"),
    [
        ("weights are NaN", nan),
        pytest.param("weights are absurdly large", absurdly_large, marks=pytest.mark.long),
        pytest.param("a matrix of another shape", wrong_shape, marks=pytest.mark.long),
        pytest.param("bytes that are no safetensors", no_safetensors, marks=pytest.mark.long),
        ("made for another target", wrong_target),
        pytest.param("signed with another key", foreign_signature, marks=pytest.mark.long),
        ("bytes truncated in the store", damaged(101, half)),
        ("a bit flipped in the store (wrong hash)", damaged(102, one_bit_flipped)),
        pytest.param("manifest damaged in the store", damaged(103, half, "m"), marks=pytest.mark.long),
    ],
)
def test_a_bad_version_is_refused(rig: Rig, title: str, publish: Publish) -> None:
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        stable = publisher.registry.rollout().stable
        before = refusals(rig)
        scenario.start_clock()
        version = publish(rig, publisher)
        assert publisher.registry.rollout().stable == version
        wait_for(lambda: all(count == before.get(name, 0) + 1 for name, count in refusals(rig).items()))
        scenario.recovered("from its publication until each replica has refused it")
        assert rig.run(stable)
        publisher.registry.decide(Decision(kind="revoke", version=version, by="chaos tier"))
        assert publisher.registry.rollout().stable == stable


def refusals(rig: Rig) -> dict[str, int]:
    return {status.replica: status.weights.refused for status in rig.replicas()}


def test_a_candidate_that_is_refused_is_revoked(rig: Rig) -> None:
    title = "a candidate of infinite weights, tried on a canary"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        registry = publisher.registry
        before = registry.rollout()
        scenario.start_clock()
        # Other bytes than the stable version of NaN: those are quarantined.
        version = publisher.publish(adapter(torch.inf), state="candidate")
        wait_for(lambda: registry.rollout().candidate == 0)
        scenario.recovered("from its publication until it is revoked")
        assert registry.events()[-1].event == "revoke"
        assert registry.events()[-1].version == version
        assert registry.rollout().stable == before.stable
        assert rig.run(before.stable)
