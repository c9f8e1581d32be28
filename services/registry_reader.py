"""What of the weight registry is read, and the two things a replica does besides: acknowledge and wait."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

from evospec.errors import VersionMissingError
from evospec.ports import ACKNOWLEDGED_FOR_S
from evospec.wire import Rollout, RolloutEvent, VersionedWeights
from services.redis_connection import connect, redis_errors
from services.registry_contents import (
    MAX_MANIFEST_BYTES,
    KeptVersions,
    Raw,
    check_size,
    read_event,
    read_manifest,
    read_number,
    read_rollout,
    read_training_state,
    read_weights,
    text_of,
)
from services.registry_keys import Keys
from services.urls import redact
from services.wakeup import WakeupListener

CONTROL_TIMEOUT_S = 5.0
BLOB_TIMEOUT_S = 60.0  # redis-py counts it for the whole of one send


class RegistryReader:
    """All that a replica needs; the user of `infra/redis/users.acl` for replicas may do just this.

    Safe for threads; `wait` serves one thread at a time. Every server error is a
    RegistryError of one line; connections are made again by themselves.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str,
        max_blob_bytes: int,
        signing_key: str | None,
        setting: str,
    ) -> None:
        """Connects lazily; see `services.registry.RedisWeightRegistry`."""
        self._address = redact(url)
        self._setting = setting
        self._keys = Keys(namespace)
        self._max_blob_bytes = max_blob_bytes
        self._signing_key = signing_key
        self._control = connect(url, socket_timeout_s=CONTROL_TIMEOUT_S, setting=setting)
        self._blobs = connect(url, socket_timeout_s=BLOB_TIMEOUT_S, setting=setting)
        self._wakeups = WakeupListener(self._control, self._keys["wakeup"], self._address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address}, namespace={self._keys.namespace!r})"

    def ping(self) -> None:
        """Raises RegistryError unless the server answers."""
        with self._errors("open the weight registry"):
            self._control.ping()

    def rollout(self) -> Rollout:
        """Which version each replica should run, read in one step."""
        key = self._keys["rollout"]
        with self._errors("read the rollout"):
            fields = self._control.hmget(key, "serial", "stable", "candidate", "canary")
        return read_rollout(self._address, *fields)

    def newest_version(self) -> int:
        """Highest version ever published, revoked or not; 0 when nothing was."""
        with self._errors("read the newest version"):
            raw = self._control.hget(self._keys["rollout"], "newest")
        return read_number(self._address, "a newest version", raw)

    def fetch(self, version: int) -> VersionedWeights:
        """Manifest and blob of `version`, verified.

        Raises:
            RegistryError: the server is away.
            VersionMissingError: it has no such version (any more).
            WireError: what is stored is too large, damaged, not signed as configured,
                or the manifest of another version.
        """
        blob_key, record = self._keys.blob(version), self._keys.record(version)
        with self._errors(f"fetch version {version}"):
            check_size(version, "blob", self._control.strlen(blob_key), self._max_blob_bytes)
            check_size(version, "manifest", self._control.hstrlen(record, "manifest"), MAX_MANIFEST_BYTES)
            # In one step: a version is never read half before and half after a trim.
            with self._blobs.pipeline(transaction=True) as both:
                both.get(blob_key)
                both.hmget(record, "manifest", "digest", "state")
                blob, fields = both.execute()
        if blob is None or fields[0] is None:
            raise self._missing(version)
        return read_weights(version, read_manifest(version, *fields), blob, self._signing_key)

    def fetch_training_state(self, version: int) -> bytes | None:
        """What was published beside `version`; None when that was nothing or is not kept.

        Raises:
            WireError: what is stored is too large, damaged, or not signed as configured.
        """
        key, record = self._keys.training_state(version), self._keys.record(version)
        with self._errors(f"fetch the training state of version {version}"):
            check_size(version, "training state", self._control.strlen(key), self._max_blob_bytes)
            with self._blobs.pipeline(transaction=True) as both:
                both.get(key)
                both.hget(record, "seal")
                stored, seal = both.execute()
        return None if stored is None else read_training_state(version, stored, seal, self._signing_key)

    def kept_versions(self) -> KeptVersions:
        """Manifests and states of the versions kept; their blobs are neither read nor checked.

        Raises:
            RegistryError: the server is away.
        """
        with self._errors("list the versions"):
            members = cast("list[Raw]", self._control.zrange(self._keys["versions"], 0, -1))
            versions = [read_number(self._address, "a version", member) for member in members]
            with self._control.pipeline(transaction=True) as each:
                for version in versions:
                    each.hmget(self._keys.record(version), "manifest", "digest", "state")
                records = each.execute()
        # One that was trimmed between the two commands is gone.
        kept = zip(versions, records, strict=True)
        return KeptVersions.read({version: fields for version, fields in kept if fields[0] is not None})

    def events(self, limit: int = 100) -> list[RolloutEvent]:
        """The latest entries of the audit trail, oldest first."""
        if limit < 1:
            return []
        with self._errors("read the audit trail"):
            latest = self._control.xrevrange(self._keys["events"], count=limit) or []
        return [read_event(self._address, entry, fields or {}) for entry, fields in reversed(latest)]

    def acknowledge(self, replica: str, version: int) -> None:
        """Records that `replica` decodes with `version`, for `ACKNOWLEDGED_FOR_S` seconds from now."""
        with (
            self._errors(f"acknowledge version {version}"),
            self._control.pipeline(transaction=True) as both,
        ):
            both.hset(self._keys["acknowledgements"], replica, version)
            both.set(self._keys.alive(replica), "", ex=ACKNOWLEDGED_FOR_S)
            both.execute()

    def acknowledgements(self) -> dict[str, int]:
        """Version last acknowledged by each replica; those that fell silent are left out."""
        with self._errors("read the acknowledgements"):
            seen = self._control.hgetall(self._keys["acknowledgements"])
            versions = {
                text_of(replica): read_number(self._address, "an acknowledgement", version)
                for replica, version in seen.items()
            }
            with self._control.pipeline(transaction=False) as each:
                for replica in versions:
                    each.get(self._keys.alive(replica))
                alive = each.execute()
        return {
            replica: version
            for (replica, version), life in zip(versions.items(), alive, strict=True)
            if life is not None
        }

    def wait(self, timeout_s: float) -> bool:
        """Blocks until a hint that the rollout changed; see `WakeupListener.wait`.

        A server that is away costs the timeout, not an exception: the caller polls next.
        """
        return self._wakeups.wait(timeout_s)

    def close(self) -> None:
        self._wakeups.close()
        self._control.close()
        self._blobs.close()

    def _errors(self, action: str) -> AbstractContextManager[None]:
        return redis_errors(self._address, action, self._setting)

    def _missing(self, version: int) -> VersionMissingError:
        return VersionMissingError(
            f"version {version} is not in {self._address}: it was trimmed, or the server was flushed; "
            "read the rollout again"
        )
