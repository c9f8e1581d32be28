"""Names of what the weight registry stores, all below one namespace.

{namespace}:rollout            hash: serial, stable, candidate, canary (JSON list), newest version
{namespace}:w:{version}        blob (safetensors bytes), immutable
{namespace}:t:{version}        training state, where the publisher stored one, immutable
{namespace}:m:{version}        hash: manifest (JSON), digest of it, sha256 of the blob, seal of the
                               training state (all immutable), and state, which decisions change
{namespace}:versions           sorted set of the versions kept
{namespace}:epoch              newest publisher epoch
{namespace}:quarantine         sorted set of the blobs' SHA-256 that were revoked, latest last
{namespace}:events             capped stream: the audit trail
{namespace}:acknowledgements   hash: replica -> version it decodes with
{namespace}:alive:{replica}    expires by itself unless the replica acknowledges again
{namespace}:staged:{token}     blob on its way in, expires by itself; {token}:t its training state
{namespace}:wakeup             pub/sub channel
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of everything the registry stores under one namespace."""

    namespace: str

    def __getitem__(self, name: str) -> str:
        return f"{self.namespace}:{name}"

    def blob(self, version: int) -> str:
        return f"{self.namespace}:w:{version}"

    def training_state(self, version: int) -> str:
        return f"{self.namespace}:t:{version}"

    def alive(self, replica: str) -> str:
        return f"{self.namespace}:alive:{replica}"

    def record(self, version: int) -> str:
        return f"{self.namespace}:m:{version}"
