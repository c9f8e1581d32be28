"""The aligner's side of the weight registry: one publisher at a time, versions that only grow."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evospec.errors import RegistryError, StalePublisherError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.ports import RegistryFactory, WeightRegistry
from evospec.wire import MANIFEST_SCHEMA, Fingerprints, Manifest, TensorSpec, VersionedWeights

logger = logging.getLogger(__name__)

MAX_PAUSE_S = 60.0


@dataclass(slots=True)
class PublisherCounts:
    published: int = 0
    registry_failures: int = 0
    epoch: int = 0
    version: int = 0
    superseded: bool = False


class WeightPublisher:
    """Joins the registry, then publishes versions; after a failure it pauses, ever longer.

    Joining takes a new publisher epoch, which shuts out every earlier publisher; this one
    ends (`superseded`) when it is shut out itself. Not thread-safe.
    """

    def __init__(
        self,
        registry: RegistryFactory,
        fingerprints: Fingerprints,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = registry
        self._fingerprints = fingerprints
        self._clock = clock
        self._registry: WeightRegistry | None = None
        self._failures = 0
        self._quiet_until = 0.0
        self.counts = PublisherCounts()

    @property
    def joined(self) -> bool:
        return self.counts.epoch > 0

    @property
    def may_call(self) -> bool:
        """False while a pause after a failure lasts, and once another publisher took over."""
        return not self.counts.superseded and self._clock() >= self._quiet_until

    @property
    def next_version(self) -> int:
        return self.counts.version + 1

    def join(self) -> VersionedWeights | None:
        """Takes an epoch and returns the current version, if it was made for these models.

        `joined` tells whether it worked.
        """
        try:
            registry = self._connection()
            epoch = registry.acquire_epoch()
            current = registry.current_version()
            weights = registry.fetch(current) if current else None
            # Replicas can be ahead of a registry that lost its data.
            version = max(current, *registry.acknowledgements().values(), 0)
        except WireError as error:
            logger.warning("version %d is not resumed, training starts from the base: %s", current, error)
            version, weights = current, None
        except RegistryError as error:
            self._failed(error)
            return None
        self._failures = 0
        self.counts.version = version
        self.counts.epoch = epoch  # last: whoever sees the epoch sees its version
        return weights if weights and weights.manifest.fingerprints == self._fingerprints else None

    def publish(self, adapter: AdapterWeights, metrics: Mapping[str, float]) -> bool:
        """Publishes `adapter`, whose version is `next_version`; False when it did not get through."""
        blob = adapter.to_bytes()
        try:
            registry = self._connection()
            current = registry.current_version()
            if current >= adapter.version:
                self._overtaken(registry.fetch(current).manifest)
                return False
            registry.publish(self._manifest(adapter, blob, metrics), blob)
        except StalePublisherError as error:
            self._end(error)
            return False
        except (RegistryError, WireError) as error:
            self._failed(error)
            return False
        self._failures = 0
        self.counts.version = adapter.version
        self.counts.published += 1
        return True

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def _overtaken(self, manifest: Manifest) -> None:
        """The registry is ahead: a publication of ours landed although its answer was lost, or another's."""
        if manifest.epoch == self.counts.epoch:
            self.counts.version = manifest.version
            self.counts.published += 1
        else:
            self._end(StalePublisherError(f"version {manifest.version} has epoch {manifest.epoch}"))

    def _end(self, error: StalePublisherError) -> None:
        self.counts.superseded = True
        logger.error("another aligner took over, this one publishes no more: %s", error)

    def _failed(self, error: Exception) -> None:
        self.counts.registry_failures += 1
        self._failures += 1
        self._quiet_until = self._clock() + min(2.0 ** min(self._failures - 1, 16), MAX_PAUSE_S)
        if self._failures == 1:
            logger.warning("the weight registry failed, trying again later: %s", error)

    def _connection(self) -> WeightRegistry:
        if self._registry is None:
            self._registry = self._open()
        return self._registry

    def _manifest(self, adapter: AdapterWeights, blob: bytes, metrics: Mapping[str, float]) -> Manifest:
        return Manifest(
            schema=MANIFEST_SCHEMA,
            version=adapter.version,
            epoch=self.counts.epoch,
            parent=self.counts.version,
            created=time.time(),
            fingerprints=self._fingerprints,
            tensors=tuple(
                TensorSpec(
                    name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
                )
                for name, tensor in sorted(adapter.tensors.items())
            ),
            length=len(blob),
            sha256=hashlib.sha256(blob).hexdigest(),
            metrics=dict(metrics),
        )
