"""Records that cross process borders: weight manifests and index points.

Traces, which only the aligner reads, live in `evospec.align.trace`.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evospec.errors import WireError

MANIFEST_SCHEMA = 1
MAX_VERSION = 2**53  # exact in JSON and Lua, whose numbers are doubles

VersionState = Literal["candidate", "canary", "stable", "revoked"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fingerprints(Record):
    """Hashes of what a weight delta, trace or index point was made with."""

    target: str
    drafter: str
    tokenizer: str


class TensorSpec(Record):
    name: str
    shape: tuple[int, ...]
    dtype: str


class Manifest(Record):
    """What a published version is; stored as JSON beside its immutable blob.

    `sha256` and `length` are those of the blob. `signature` is the HMAC-SHA256
    of `signing_payload()`, present when the publisher has a key.
    """

    schema_version: int = Field(MANIFEST_SCHEMA, alias="schema")
    version: int = Field(ge=1, le=MAX_VERSION)
    epoch: int = Field(ge=1, le=MAX_VERSION)
    parent: int = Field(ge=0, le=MAX_VERSION)
    created: float
    fingerprints: Fingerprints
    tensors: tuple[TensorSpec, ...]
    length: int = Field(ge=0)
    sha256: str
    signature: str | None = None
    metrics: dict[str, float] = {}
    state: VersionState = "stable"

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises WireError on anything but a manifest of this schema."""
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])[:80]
            # One line, even where the document brought its own line breaks.
            raise WireError(" ".join(f"manifest is not valid: {where}: {first['msg']}".split())) from None
        if manifest.schema_version != MANIFEST_SCHEMA:
            raise WireError(
                f"manifest has schema {manifest.schema_version}, this program reads {MANIFEST_SCHEMA}"
            )
        if not all(map(math.isfinite, (manifest.created, *manifest.metrics.values()))):
            raise WireError("manifest is not valid: created or metrics hold a number that is not finite")
        return manifest

    def signing_payload(self) -> bytes:
        """Bytes that the signature covers: all but itself and the state, which operators change."""
        return self.model_copy(update={"signature": None, "state": "candidate"}).to_json().encode()

    def signed(self, key: str) -> Manifest:
        return self.model_copy(update={"signature": _hmac(key, self.signing_payload())})

    def verify(self, blob: bytes, key: str | None) -> None:
        """Raises WireError unless `blob` is the one described and, with a key, signed by it."""
        if len(blob) != self.length:
            raise WireError(
                f"version {self.version}: blob has {len(blob)} bytes, manifest says {self.length}"
            )
        if hashlib.sha256(blob).hexdigest() != self.sha256:
            raise WireError(f"version {self.version}: blob does not match its SHA-256")
        if key is None:
            return
        if self.signature is None:
            raise WireError(f"version {self.version}: not signed, but a signing key is configured")
        expected = _hmac(key, self.signing_payload())
        # As bytes: of text that is not ASCII, compare_digest makes a TypeError.
        if not hmac.compare_digest(self.signature.encode(), expected.encode()):
            raise WireError(f"version {self.version}: signature does not match the configured key")


def _hmac(key: str, payload: bytes) -> str:
    return hmac.new(key.encode(), payload, hashlib.sha256).hexdigest()


DecisionKind = Literal["canary", "promote", "revoke", "rollback"]


class Decision(Record):
    """Something decided about a version; the registry carries it out whole or refuses it.

    `canary`: the candidate runs on `replicas`, and on no other. `promote`: the version becomes
    stable, for all. `revoke`: it is withdrawn and its content quarantined; revoking the stable
    version makes the newest stable one before it stable again, or the base (version 0). `rollback`:
    the version, or the base, becomes stable, and every later one is revoked.
    """

    kind: DecisionKind
    version: int = Field(ge=0, le=MAX_VERSION)
    by: str
    reason: str = ""
    replicas: tuple[str, ...] = ()


class RolloutEvent(Record):
    """One line of the audit trail; `time_s` is the server's clock, in seconds since 1970."""

    event: DecisionKind | Literal["published"]
    version: int
    time_s: float
    by: str = ""
    reason: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The registry's pointer: which version each replica should run.

    Attributes:
        serial: grows with every change; 0 means that nothing was published, or that the server
            lost its data.
        stable: version of all replicas that are not canaries; 0 is the base, without an adapter.
        candidate: version that waits for its canary or is in it; 0 when there is none.
        canary: replicas that run the candidate.
    """

    serial: int = 0
    stable: int = 0
    candidate: int = 0
    canary: frozenset[str] = frozenset()

    def wanted(self, replica: str) -> int:
        return self.candidate if self.candidate and replica in self.canary else self.stable


@dataclass(frozen=True, slots=True)
class VersionedWeights:
    """A published version as fetched: safetensors bytes and the manifest they were checked against."""

    manifest: Manifest
    blob: bytes


@dataclass(frozen=True, slots=True)
class IndexPoint:
    """What one finished request teaches the semantic index.

    Attributes:
        vector: context embedding [dim], float32, unit length.
        token_ids: long-tail token ids used in that context.
        weights: their weights, same length, positive.
        tenant: partition; points are never returned to another tenant.
        target: fingerprint of the target whose hidden states made the vector.
    """

    vector: np.ndarray
    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    tenant: str
    target: str


@dataclass(frozen=True, slots=True)
class TokenHits:
    """Token ids retrieved for one context, best first, with their summed weights."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
