"""What the registry keeps and for how long: versions, quarantined content, the audit trail."""

from __future__ import annotations

from contextlib import closing

import pytest
from redis import Redis

from evospec.config import RegistryConfig
from evospec.errors import DecisionRefusedError, RegistryError
from evospec.wire import Decision, DecisionKind
from services import registry as registry_module
from services.registry import RedisWeightRegistry, open_registry
from tests.integration.registry_kit import (
    PATIENCE_S,
    blob_of,
    decide,
    manifest_of,
    one_line,
    publish,
    states,
)

# --- quarantine and retention -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["revoke", "rollback"])
def test_revoked_content_is_never_accepted_again(how: DecisionKind, tried: RedisWeightRegistry) -> None:
    decide(tried, how, 3 if how == "revoke" else 1)
    again = blob_of(3)
    for state in ("candidate", "stable"):
        manifest = manifest_of(7, again).model_copy(update={"state": state})
        with pytest.raises(DecisionRefusedError, match=manifest.sha256[:16]) as caught:
            tried.publish(manifest, again)
        one_line(caught.value)
    publish(tried, 7)
    assert tried.rollout().stable == 7


def test_the_quarantine_is_bounded(
    registry: RedisWeightRegistry, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_QUARANTINED", 5)
    for version in range(1, 12):
        publish(registry, version, state="candidate")
        decide(registry, "revoke", version)
    latest = [manifest_of(version, blob_of(version)).sha256.encode() for version in range(7, 12)]
    assert raw.zrange("test:quarantine", 0, -1) == latest


def test_trimming_spares_the_stable_version_and_the_candidate(registry: RedisWeightRegistry) -> None:
    publish(registry, 1, training_state=b"moments")
    publish(registry, 2, state="candidate")
    decide(registry, "revoke", 2)
    for version in (3, 4, 5, 6):
        publish(registry, version, state="candidate")
        assert registry.fetch(1).blob == blob_of(1)
        assert registry.fetch(version).blob == blob_of(version)
        decide(registry, "revoke", version)
    assert sorted(states(registry)) == [1, 4, 5, 6]  # keep_versions is 3
    assert registry.fetch_training_state(1) == b"moments"
    publish(registry, 7)
    assert sorted(states(registry)) == [1, 5, 6, 7]  # 1 is what a revocation of 7 would bring back
    publish(registry, 8)
    assert sorted(states(registry)) == [6, 7, 8]


def test_bad_versions_in_a_row_do_not_push_the_last_good_one_out(registry: RedisWeightRegistry) -> None:
    publish(registry, 1)
    for version in range(2, 12):
        publish(registry, version)
        decide(registry, "revoke", version)
        assert registry.rollout().stable == 1
        assert registry.fetch(1).blob == blob_of(1)


def test_one_version_kept_is_enough(registry_config: RegistryConfig, redis_server: object) -> None:
    assert registry_config.url is not None
    with closing(RedisWeightRegistry(registry_config.url, namespace="test", keep_versions=1)) as registry:
        publish(registry, 1)
        publish(registry, 2, state="candidate")
        assert sorted(states(registry)) == [1, 2]
        decide(registry, "revoke", 2)
        publish(registry, 3, state="candidate")
        assert sorted(states(registry)) == [1, 3]
    with pytest.raises(RegistryError, match="keep at least one"):
        RedisWeightRegistry(registry_config.url, keep_versions=0)


# --- audit trail ------------------------------------------------------------------------------


def test_the_audit_trail_names_who_and_why(tried: RedisWeightRegistry, raw: Redis) -> None:
    seconds, microseconds = raw.time()
    tried.decide(Decision(kind="revoke", version=3, by="évèlyne", reason="slower;\n see ticket 7"))
    *_, published, canary, revoked = tried.events()
    assert (published.event, published.version, published.by) == ("published", 3, "publisher of epoch 1")
    assert (canary.event, canary.by, canary.reason) == ("canary", "test", "why")
    assert (revoked.event, revoked.version) == ("revoke", 3)
    assert (revoked.by, revoked.reason) == ("évèlyne", "slower;\n see ticket 7")
    assert revoked.sha256 == published.sha256 == manifest_of(3, blob_of(3)).sha256
    assert round(revoked.time_s * 1000) >= seconds * 1000 + microseconds // 1000  # the server's clock
    assert [event.event for event in tried.events(2)] == ["canary", "revoke"]
    assert tried.events(0) == []


def test_every_change_is_hinted_and_numbered(
    tried: RedisWeightRegistry, registry_config: RegistryConfig
) -> None:
    with closing(open_registry(registry_config)) as replica:
        assert replica.wait(PATIENCE_S)
        for kind, version in (("revoke", 3), ("rollback", 1), ("rollback", 0)):
            before = replica.rollout().serial
            tried.decide(Decision(kind=kind, version=version, by="test"))
            assert replica.wait(PATIENCE_S)
            assert replica.rollout().serial == before + 1
