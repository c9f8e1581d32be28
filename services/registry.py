"""Weight registry on Redis or Valkey; its keys are listed in `services.registry_keys`."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from redis.commands.core import Script

from evospec.config import RegistryConfig
from evospec.errors import DecisionRefusedError, RegistryError, WireError
from evospec.wire import Decision, Manifest
from services.registry_answer import (
    DONE,
    Answer,
    names_no_replica,
    refused_decision,
    refused_publication,
    verb,
)
from services.registry_contents import MAX_MANIFEST_BYTES, digest_of, seal_of
from services.registry_reader import RegistryReader
from services.registry_script import DECIDE, PUBLISH

logger = logging.getLogger(__name__)

STAGED_EXPIRES_S = 600  # what a publisher that died half-way leaves behind
MAX_EVENTS = 1000
MAX_QUARANTINED = 1000
POINTER_KEYS = ("rollout", "versions", "events", "quarantine", "epoch")


class RedisWeightRegistry(RegistryReader):
    """`evospec.ports.WeightRegistry` on a Redis or Valkey server."""

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "evospec",
        keep_versions: int = 8,
        max_blob_bytes: int = 256 << 20,
        signing_key: str | None = None,
        setting: str = "registry.url",
    ) -> None:
        """Connects lazily: the first command meets the server.

        Args:
            url: one of the forms that `services.redis_connection.connect` lists.
            keep_versions: newest versions that stay, beside the stable one and the candidate;
                older ones are deleted on publish.
            max_blob_bytes: larger blobs and training states are neither published nor read; versions go
                without the latter.
            signing_key: HMAC key: manifests are signed with it and refused without its signature.
            setting: option that the URL comes from, for messages.

        Raises:
            RegistryError: the URL cannot be read, or `keep_versions` is below 1.
        """
        if keep_versions < 1:
            raise RegistryError(f"registry.keep_versions is {keep_versions}: keep at least one version")
        super().__init__(
            url, namespace=namespace, max_blob_bytes=max_blob_bytes, signing_key=signing_key, setting=setting
        )
        self._keep_versions = keep_versions
        self._told_too_large = False
        self._publish = self._control.register_script(PUBLISH)
        self._decide = self._control.register_script(DECIDE)

    def acquire_epoch(self) -> int:
        """Returns a publisher epoch greater than any before it; older ones can publish no more."""
        with self._errors("acquire a publisher epoch"):
            return int(self._control.incr(self._keys["epoch"]))

    def publish(self, manifest: Manifest, blob: bytes, training_state: bytes | None = None) -> None:
        """Stores the version and announces it, in one atomic step.

        A stable version is for all at once; a candidate that it overtakes waits no longer.

        Raises:
            WireError: `manifest` does not describe `blob`, or can't be read back.
            RegistryError: something is above its size limit, or the server is away.
            StalePublisherError: a version at least as high was published, or a newer epoch acquired.
            DecisionRefusedError: another candidate is being tried, the content is quarantined, or the
                state is neither `candidate` nor `stable`.
        """
        self._check_publishable(manifest, blob)
        training_state = self._if_fitting(training_state)
        if self._signing_key is not None:
            manifest = manifest.signed(self._signing_key)
        token = uuid.uuid4().hex
        # Staged first: two publishers of one version can't overwrite each other's bytes.
        with self._errors(f"publish version {manifest.version}"):
            self._blobs.set(self._staged(token), blob, ex=STAGED_EXPIRES_S)
            if training_state is not None:
                self._blobs.set(self._staged_training(token), training_state, ex=STAGED_EXPIRES_S)
            answer = self._announce(manifest, token, training_state)
        if answer.outcome != DONE:
            raise refused_publication(manifest, answer, self._address)

    def decide(self, decision: Decision) -> None:
        """Carries out a decision and writes it to the audit trail, in one atomic step.

        What holds already is not carried out, nor written down, again.

        Raises:
            RegistryError: the server is away.
            DecisionRefusedError: it does not fit what the registry holds now.
        """
        if decision.kind == "canary" and not decision.replicas:
            raise names_no_replica(decision)
        with self._errors(verb(decision)):
            answer = self._run(
                self._decide,
                uuid.uuid4().hex,
                args=[
                    decision.kind,
                    decision.version,
                    json.dumps(sorted(set(decision.replicas))),
                    decision.by,
                    decision.reason,
                    MAX_QUARANTINED,
                ],
            )
        if answer.outcome != DONE:
            raise refused_decision(decision, answer, self._address)

    def _if_fitting(self, training_state: bytes | None) -> bytes | None:
        """A version without one can still be served; only a new aligner misses it."""
        if training_state is None or len(training_state) <= self._max_blob_bytes:
            return training_state
        if not self._told_too_large:
            self._told_too_large = True
            logger.warning(
                "training states of %d bytes are not stored, registry.max_blob_mb allows %d: after a restart "
                "training goes on with fresh moments",
                len(training_state),
                self._max_blob_bytes,
            )
        return None

    def _check_publishable(self, manifest: Manifest, blob: bytes) -> None:
        manifest.verify(blob, None)
        Manifest.from_json(manifest.to_json())  # what can't be read back must not be published
        if manifest.state not in ("candidate", "stable"):
            raise DecisionRefusedError(
                f"version {manifest.version} is marked {manifest.state}: publish it as candidate or stable"
            )
        if len(blob) > self._max_blob_bytes:
            raise RegistryError(
                f"version {manifest.version}: its blob has {len(blob)} bytes, more than "
                f"registry.max_blob_mb allows ({self._max_blob_bytes} bytes): raise it or publish a "
                "smaller adapter"
            )
        if len(manifest.to_json().encode()) > MAX_MANIFEST_BYTES:
            raise WireError(
                f"version {manifest.version}: its manifest is larger than {MAX_MANIFEST_BYTES} bytes"
            )

    def _announce(self, manifest: Manifest, token: str, training_state: bytes | None) -> Answer:
        written = manifest.to_json()
        key = self._signing_key
        return self._run(
            self._publish,
            token,
            keys=[self._keys["acknowledgements"], self._staged(token), self._staged_training(token)],
            args=[
                manifest.version,
                manifest.epoch,
                manifest.state,
                f"publisher of epoch {manifest.epoch}",
                written,
                digest_of(written),
                manifest.sha256,
                "" if training_state is None else seal_of(manifest.version, training_state, key),
                self._keep_versions,
            ],
        )

    def _run(
        self, script: Script, receipt: str, *, args: Sequence[str | int], keys: Sequence[str] = ()
    ) -> Answer:
        """Runs a script with the arguments that both share before its own."""
        reply: Any = script(
            keys=[*(self._keys[name] for name in POINTER_KEYS), *keys],
            args=[self._keys[""], self._keys["wakeup"], receipt, MAX_EVENTS, *args],
        )
        return Answer.read(self._address, reply)

    def _staged(self, token: str) -> str:
        return self._keys[f"staged:{token}"]

    def _staged_training(self, token: str) -> str:
        return self._keys[f"staged:{token}:t"]


def open_registry(config: RegistryConfig) -> RedisWeightRegistry:
    """Opens the registry that `config` describes and makes sure that the server answers.

    `functools.partial(open_registry, config)` pickles and is a `RegistryFactory`.

    Raises:
        RegistryError: no URL is set, or the server is not reachable.
    """
    return _open(config, config.url, "registry.url")


def open_replica_registry(config: RegistryConfig) -> RedisWeightRegistry:
    """Opens the same registry as replicas do: at `replica_url`, whose user only reads, where it is set.

    Publishing and deciding are then refused by the server. Pickles as `open_registry` does.

    Raises:
        RegistryError: no URL is set, or the server is not reachable.
    """
    if config.replica_url is None:
        return open_registry(config)
    return _open(config, config.replica_url, "registry.replica_url")


def _open(config: RegistryConfig, url: str | None, setting: str) -> RedisWeightRegistry:
    if url is None:
        raise RegistryError(
            f"{setting} is not set: name a Redis or Valkey server, or start one with "
            "services.valkey.EmbeddedValkey and use its url"
        )
    registry = RedisWeightRegistry(
        url,
        namespace=config.namespace,
        keep_versions=config.keep_versions,
        max_blob_bytes=int(config.max_blob_mb * 2**20),
        signing_key=config.signing_key,
        setting=setting,
    )
    try:
        registry.ping()
    except RegistryError:
        registry.close()
        raise
    return registry
