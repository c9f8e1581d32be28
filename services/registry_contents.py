"""What the registry's keys hold, turned into records: whatever is damaged is refused."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from evospec.errors import RegistryError, WireError
from evospec.wire import Manifest, Rollout, RolloutEvent, VersionedWeights, VersionState

MAX_MANIFEST_BYTES = 1 << 20

# Replies of redis-py: bytes, as connections don't decode; None where a key or field is missing.
Raw = bytes | str | None

_NAMES = TypeAdapter(list[str])


@dataclass(frozen=True, slots=True)
class KeptVersions:
    """The versions that a registry keeps, by number, oldest first.

    Attributes:
        manifests: of those that are intact.
        states: of all whose state can be read.
        damaged: what is wrong with the manifests or states of the others.
    """

    manifests: dict[int, Manifest]
    states: dict[int, VersionState]
    damaged: dict[int, str]

    @classmethod
    def read(cls, records: Mapping[int, Sequence[Raw]]) -> KeptVersions:
        """Reads what is stored of each version: manifest, digest and state."""
        kept = cls({}, {}, {})
        for version, (manifest, digest, state) in records.items():
            try:
                kept.states[version] = read_state(version, state)
                kept.manifests[version] = read_manifest(version, manifest, digest, state)
            except WireError as error:
                kept.damaged[version] = str(error)
        return kept


def digest_of(manifest: str | bytes) -> str:
    """SHA-256 of a stored manifest: it shows damage where no key is set to sign with."""
    return hashlib.sha256(manifest.encode() if isinstance(manifest, str) else manifest).hexdigest()


def seal_of(version: int, training_state: bytes, key: str | None) -> str:
    """SHA-256 of a training state or, with a key, the HMAC-SHA256 of it and of its version."""
    if key is None:
        return hashlib.sha256(training_state).hexdigest()
    payload = f"training state of {version}:".encode() + training_state
    return hmac.new(key.encode(), payload, hashlib.sha256).hexdigest()


def check_size(version: int, what: str, length: int, limit: int) -> None:
    """Raises WireError above `limit` bytes."""
    if length > limit:
        raise WireError(f"version {version}: its {what} has {length} bytes, at most {limit} are read")


def read_manifest(version: int, manifest: Raw, digest: Raw, state: Raw) -> Manifest:
    """The manifest of `version` in its present state; raises WireError when it is damaged."""
    if manifest is None or digest is None or text_of(digest) != digest_of(manifest):
        raise WireError(f"version {version}: manifest does not match its digest")
    read = Manifest.from_json(manifest)
    if read.version != version:
        raise WireError(f"version {version}: its manifest is that of version {read.version}")
    return read.model_copy(update={"state": read_state(version, state)})


def read_weights(version: int, manifest: Manifest, blob: bytes, key: str | None) -> VersionedWeights:
    """Raises WireError unless `blob` is the one described and, with a key, signed by it."""
    manifest.verify(blob, key)
    return VersionedWeights(manifest=manifest, blob=blob)


def read_training_state(version: int, stored: bytes, seal: Raw, key: str | None) -> bytes:
    """Raises WireError unless `stored` is what was published with `version`."""
    if seal is None or not hmac.compare_digest(
        text_of(seal).encode(), seal_of(version, stored, key).encode()
    ):
        raise WireError(
            f"version {version}: training state does not match its seal; it is damaged, or was sealed with "
            "another registry.signing_key"
        )
    return stored


def read_rollout(address: str, serial: Raw, stable: Raw, candidate: Raw, canary: Raw) -> Rollout:
    """Fields that are missing are those of a registry without versions.

    Raises:
        RegistryError: another program wrote them.
    """
    try:
        replicas = _NAMES.validate_json(canary or "[]")
    except ValidationError:
        raise not_ours(address, "a list of canary replicas") from None
    return Rollout(
        serial=read_number(address, "a serial", serial),
        stable=read_number(address, "a stable version", stable),
        candidate=read_number(address, "a candidate", candidate),
        canary=frozenset(replicas),
    )


def read_event(address: str, stream_id: Raw, fields: Mapping[bytes | str, bytes | str]) -> RolloutEvent:
    """Raises RegistryError for an entry that is none of the registry's."""
    known = {text_of(name): text_of(value) for name, value in fields.items()}
    shown = {name: known.get(name, "") for name in ("event", "version", "by", "reason", "sha256")}
    try:
        milliseconds = int(text_of(stream_id or "").partition("-")[0])
        return RolloutEvent.model_validate({**shown, "time_s": milliseconds / 1000})
    except ValueError:  # pydantic's are some
        raise not_ours(address, f"event {text_of(stream_id or '')!r}") from None


def read_number(address: str, what: str, raw: Raw) -> int:
    """Raises RegistryError where another program stored something else."""
    try:
        return int(raw or 0)
    except ValueError:
        raise not_ours(address, f"{what} ({(raw or '')[:40]!r} is no number)") from None


def not_ours(address: str, what: str) -> RegistryError:
    return RegistryError(
        f"{address} holds {what} that can't be read: check that registry.namespace is used by nothing else"
    )


def text_of(raw: bytes | str) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw


def read_state(version: int, raw: Raw) -> VersionState:
    """Raises WireError for what is no state."""
    for state in get_args(VersionState):
        if raw is not None and text_of(raw) == state:
            return state
    raise WireError(f"version {version}: its state is {raw!r}, which is none")
