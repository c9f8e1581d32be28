"""Weight registry on Redis or Valkey; its keys are listed in `services.registry_keys`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from evospec.config import RegistryConfig
from evospec.errors import RegistryError, StalePublisherError, WireError
from evospec.wire import Manifest, VersionedWeights
from services.redis_connection import connect, redis_errors
from services.registry_keys import Keys
from services.registry_script import PUBLISH
from services.urls import redact
from services.wakeup import WakeupListener

CONTROL_TIMEOUT_S = 5.0
BLOB_TIMEOUT_S = 60.0  # redis-py counts it for the whole of one send
STAGED_EXPIRES_S = 600  # what a publisher that died half-way leaves behind
MAX_EVENTS = 1000
MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """Answer of the publish script: `published`, `stale` or `expired`, and where the registry is."""

    outcome: str
    current: int
    epoch: int


class RedisWeightRegistry:
    """`evospec.ports.WeightRegistry` on a Redis or Valkey server.

    Safe for threads; `wait` serves one thread at a time. Every server error is a
    RegistryError of one line; connections are made again by themselves.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "evospec",
        keep_versions: int = 8,
        max_blob_bytes: int = 256 << 20,
        signing_key: str | None = None,
    ) -> None:
        """Connects lazily: the first command meets the server.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            keep_versions: newest versions that stay; older ones are deleted on publish.
            max_blob_bytes: larger blobs are neither published nor read.
            signing_key: HMAC key: manifests are signed with it and refused without its signature.

        Raises:
            RegistryError: the URL cannot be read, or `keep_versions` is below 1.
        """
        if keep_versions < 1:
            raise RegistryError(f"registry.keep_versions is {keep_versions}: keep at least one version")
        self._address = redact(url)
        self._keys = Keys(namespace)
        self._keep_versions = keep_versions
        self._max_blob_bytes = max_blob_bytes
        self._signing_key = signing_key
        self._control = connect(url, socket_timeout_s=CONTROL_TIMEOUT_S)
        self._blobs = connect(url, socket_timeout_s=BLOB_TIMEOUT_S)
        self._publish = self._control.register_script(PUBLISH)
        self._wakeups = WakeupListener(self._control, self._keys["wakeup"], self._address)

    def __repr__(self) -> str:
        return f"RedisWeightRegistry({self._address}, namespace={self._keys.namespace!r})"

    def ping(self) -> None:
        """Raises RegistryError unless the server answers."""
        with redis_errors(self._address, "open the weight registry"):
            self._control.ping()

    def acquire_epoch(self) -> int:
        with redis_errors(self._address, "acquire a publisher epoch"):
            return int(self._control.incr(self._keys["epoch"]))

    def current_version(self) -> int:
        with redis_errors(self._address, "read the current version"):
            raw = self._control.get(self._keys["current"])
        return 0 if raw is None else self._number(raw, self._keys["current"])

    def fetch(self, version: int) -> VersionedWeights:
        """Manifest and blob of `version`, verified.

        Raises:
            RegistryError: the server is away, or has no such version (any more).
            WireError: what is stored is too large, damaged, not signed as configured,
                or the manifest of another version.
        """
        blob_key, manifest_key = self._keys.blob(version), self._keys.manifest(version)
        with redis_errors(self._address, f"fetch version {version}"):
            _check_size(version, "blob", self._control.strlen(blob_key), self._max_blob_bytes)
            _check_size(version, "manifest", self._control.strlen(manifest_key), MAX_MANIFEST_BYTES)
            blob, manifest_json = self._blobs.mget(blob_key, manifest_key)
        if not isinstance(blob, bytes) or manifest_json is None:
            raise RegistryError(
                f"version {version} is not in {self._address}: it was trimmed, or the server was flushed; "
                "read the current version again"
            )
        manifest = Manifest.from_json(manifest_json)
        if manifest.version != version:
            raise WireError(f"version {version}: its manifest is that of version {manifest.version}")
        manifest.verify(blob, self._signing_key)
        return VersionedWeights(manifest=manifest, blob=blob)

    def manifests(self) -> list[Manifest]:
        """Manifests of the versions kept, oldest first; their blobs are neither read nor checked.

        Raises:
            RegistryError: the server is away.
            WireError: a manifest is damaged.
        """
        with redis_errors(self._address, "list the versions"):
            versions = self._control.zrange(self._keys["versions"], 0, -1)
            names = [
                self._keys.manifest(int(version)) for version in versions if isinstance(version, bytes | str)
            ]
            stored = self._control.mget(names) if names else []
        # One that was trimmed between the two commands is gone.
        return [Manifest.from_json(manifest) for manifest in stored if manifest is not None]

    def publish(self, manifest: Manifest, blob: bytes) -> None:
        """Stores the version and moves the pointer to it, in one atomic step.

        Raises:
            WireError: `manifest` does not describe `blob`, or holds NaN.
            RegistryError: the blob is above the size limit, or the server is away.
            StalePublisherError: a version at least as high is current, or a newer
                epoch was acquired.
        """
        manifest.verify(blob, None)
        Manifest.from_json(manifest.to_json())  # what can't be read back must not be published
        if len(blob) > self._max_blob_bytes:
            raise RegistryError(
                f"version {manifest.version} has {len(blob)} bytes, more than registry.max_blob_mb allows "
                f"({self._max_blob_bytes} bytes): raise it or publish a smaller adapter"
            )
        if self._signing_key is not None:
            manifest = manifest.signed(self._signing_key)
        token = uuid.uuid4().hex
        staged = self._keys[f"staged:{token}"]
        with redis_errors(self._address, f"publish version {manifest.version}"):
            # Staged first: two publishers of one version can't overwrite each other's blob.
            self._blobs.set(staged, blob, ex=STAGED_EXPIRES_S)
            attempt = self._move_pointer(manifest, token, staged)
        if attempt.outcome == "stale":
            raise StalePublisherError(
                f"version {manifest.version} of epoch {manifest.epoch} was refused: {self._address} is at "
                f"version {attempt.current}, epoch {attempt.epoch}; another publisher took over: acquire an "
                "epoch and go on from the current version"
            )
        if attempt.outcome == "expired":
            raise RegistryError(
                f"version {manifest.version} was not published: its blob vanished from {self._address} "
                "before the pointer moved; publish again"
            )

    def acknowledge(self, replica: str, version: int) -> None:
        with redis_errors(self._address, f"acknowledge version {version}"):
            self._control.hset(self._keys["acknowledgements"], replica, version)

    def acknowledgements(self) -> dict[str, int]:
        """Version last acknowledged by each replica.

        A replica more than `keep_versions` versions behind is left out at the next
        publication, so that replicas long gone don't add up.
        """
        key = self._keys["acknowledgements"]
        with redis_errors(self._address, "read the acknowledgements"):
            seen = self._control.hgetall(key)
        return {_text(replica): self._number(version, key) for replica, version in seen.items()}

    def wait(self, timeout_s: float) -> bool:
        """Blocks until a hint that the pointer moved; see `WakeupListener.wait`.

        A server that is away costs the timeout, not an exception: the caller polls next.
        """
        return self._wakeups.wait(timeout_s)

    def close(self) -> None:
        self._wakeups.close()
        self._control.close()
        self._blobs.close()

    def _move_pointer(self, manifest: Manifest, token: str, staged: str) -> Attempt:
        keys = self._keys
        names = ("current", "epoch", "versions", "events", "acknowledgements", "receipt")
        outcome, current, epoch = self._publish(
            keys=[
                *(keys[name] for name in names),
                keys.manifest(manifest.version),
                keys.blob(manifest.version),
                staged,
            ],
            args=[
                manifest.version,
                manifest.epoch,
                manifest.to_json(),
                token,
                self._keep_versions,
                MAX_EVENTS,
                keys["m:"],
                keys["w:"],
                keys["wakeup"],
                manifest.sha256,
            ],
        )
        return Attempt(_text(outcome), int(current), int(epoch))

    def _number(self, raw: bytes | str, key: str) -> int:
        try:
            return int(raw)
        except ValueError:
            raise RegistryError(
                f"{key} in {self._address} holds {raw!r}, not a version: another program uses the namespace"
            ) from None


def open_registry(config: RegistryConfig) -> RedisWeightRegistry:
    """Opens the registry that `config` describes and makes sure that the server answers.

    `functools.partial(open_registry, config)` pickles and is a `RegistryFactory`.

    Raises:
        RegistryError: no URL is set, or the server is not reachable.
    """
    if config.url is None:
        raise RegistryError(
            "registry.url is not set: name a Redis or Valkey server, or start one with "
            "services.valkey.EmbeddedValkey and use its url"
        )
    registry = RedisWeightRegistry(
        config.url,
        namespace=config.namespace,
        keep_versions=config.keep_versions,
        max_blob_bytes=int(config.max_blob_mb * 2**20),
        signing_key=config.signing_key,
    )
    try:
        registry.ping()
    except RegistryError:
        registry.close()
        raise
    return registry


def _check_size(version: int, what: str, length: int, limit: int) -> None:
    if length > limit:
        raise WireError(f"version {version}: its {what} has {length} bytes, at most {limit} are read")


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw
