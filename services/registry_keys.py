"""Names of what the weight registry stores, all below one namespace.

{namespace}:w:{version}        blob (safetensors bytes), immutable
{namespace}:m:{version}        manifest (JSON)
{namespace}:current            the pointer: version that replicas should run
{namespace}:epoch              newest publisher epoch
{namespace}:versions           sorted set of the versions kept
{namespace}:events             capped stream of what was published
{namespace}:acknowledgements   hash: replica -> version it decodes with
{namespace}:receipt            token of the publication that set the pointer
{namespace}:staged:{token}     blob on its way in, expires by itself
{namespace}:wakeup             pub/sub channel
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of everything the registry stores under one namespace."""

    namespace: str

    def __getitem__(self, name: str | int) -> str:
        return f"{self.namespace}:{name}"

    def blob(self, version: int) -> str:
        return f"{self.namespace}:w:{version}"

    def manifest(self, version: int) -> str:
        return f"{self.namespace}:m:{version}"
