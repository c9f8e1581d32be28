"""The aligner's side of the weight registry: one publisher at a time, versions that only grow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from actors.offer import Offer
from evospec.errors import DecisionRefusedError, RegistryError, StalePublisherError, WireError
from evospec.ports import RegistryFactory, WeightRegistry
from evospec.wire import Fingerprints, Rollout, VersionedWeights, VersionState

logger = logging.getLogger(__name__)

MAX_PAUSE_S = 60.0
LOOK_S = 1.0  # what became of a version is asked this often at most


class Publication(StrEnum):
    """What became of an offered version."""

    PUBLISHED = "published"
    REFUSED = "refused"  # another candidate is being tried, or this content was revoked before
    FAILED = "failed"  # not known to have got through: `look` finds out


@dataclass(slots=True)
class PublisherCounts:
    """Counters, and where the registry was when it was last asked.

    `promoted` and `revoked` are candidates whose fate this publisher saw, `refused`
    publications that the registry did not want; `pending` is the candidate that waits for
    its canary or is in it, 0 when there is none.
    """

    published: int = 0
    promoted: int = 0
    revoked: int = 0
    refused: int = 0
    registry_failures: int = 0
    epoch: int = 0
    version: int = 0
    stable: int = 0
    pending: int = 0
    superseded: bool = False


class WeightPublisher:
    """Joins the registry, publishes versions and learns what became of them.

    After a failure it pauses, ever longer. Joining takes a new publisher epoch, which shuts
    out every earlier publisher; this one ends (`superseded`) when it is shut out itself.
    Not thread-safe.

    Args:
        canary: versions are published as candidates, one at a time; else they are stable at once.
    """

    def __init__(
        self,
        registry: RegistryFactory,
        fingerprints: Fingerprints,
        *,
        canary: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open = registry
        self._fingerprints = fingerprints
        self._state: VersionState = "candidate" if canary else "stable"
        self._clock = clock
        self._registry: WeightRegistry | None = None
        self._failures = 0
        self._quiet_until = 0.0
        self._next_look = 0.0
        self.counts = PublisherCounts()

    @property
    def joined(self) -> bool:
        return self.counts.epoch > 0

    @property
    def may_call(self) -> bool:
        """False while a pause after a failure lasts, and once another publisher took over."""
        return not self.counts.superseded and self._clock() >= self._quiet_until

    @property
    def may_offer(self) -> bool:
        """False as well while a candidate is being tried."""
        return self.joined and not self.counts.pending and self.may_call

    @property
    def next_version(self) -> int:
        return self.counts.version + 1

    def join(self) -> None:
        """Takes an epoch and finds out where the numbers go on; `joined` tells whether it worked."""
        try:
            registry = self._connection()
            epoch = registry.acquire_epoch()
            # Replicas can be ahead of a registry that lost its data.
            version = max(registry.newest_version(), *registry.acknowledgements().values(), 0)
        except RegistryError as error:
            self._failed(error)
            return
        self._failures = 0
        self.counts.version = version
        self.counts.epoch = epoch  # last: whoever sees the epoch sees its version

    def look(self) -> Rollout | None:
        """What the registry says now; None when it was asked a moment ago, or can't be."""
        now = self._clock()
        if not self.may_call or now < self._next_look:
            return None
        try:
            registry = self._connection()
            rollout = registry.rollout()
        except RegistryError as error:
            self._failed(error)
            return None
        self._failures = 0
        self._next_look = now + LOOK_S
        ahead = max(rollout.stable, rollout.candidate)
        if ahead > self.counts.version:
            self._overtaken(registry, ahead)
        self._note(rollout)
        return rollout

    def fetch(self, version: int) -> VersionedWeights | None:
        """A published version; None when it can't be had now.

        Raises:
            WireError: it is damaged, or was made for other models.
        """
        try:
            weights = self._connection().fetch(version)
        except RegistryError as error:
            self._failed(error)
            return None
        if weights.manifest.fingerprints != self._fingerprints:
            raise WireError(f"it was made for {weights.manifest.fingerprints}")
        return weights

    def fetch_training_state(self, version: int) -> bytes | None:
        """What was published beside a version; None when there is nothing, or it can't be had now.

        Raises:
            WireError: it is damaged.
        """
        try:
            return self._connection().fetch_training_state(version)
        except RegistryError as error:
            self._failed(error)
            return None

    def publish(self, offer: Offer, *, at_once: bool = False) -> Publication:
        """Publishes a version whose number is `next_version`; `at_once` without a canary."""
        blob = offer.adapter.to_bytes()
        state = "stable" if at_once else self._state
        manifest = offer.manifest(blob, self.counts.epoch, self._fingerprints, state)
        try:
            self._connection().publish(manifest, blob, offer.training_state)
        except StalePublisherError as error:
            self._stale(manifest.version, error)
            return Publication.FAILED
        except DecisionRefusedError as error:
            self._refused(error)
            return Publication.REFUSED
        except RegistryError as error:
            self._failed(error)
            return Publication.FAILED
        self._failures = 0
        if manifest.state == "candidate":
            self.counts.pending = manifest.version
        self._published(manifest.version)
        return Publication.PUBLISHED

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def _note(self, rollout: Rollout) -> None:
        """Compares with the last look; a registry that lost its data tells nothing of a candidate's fate."""
        counts = self.counts
        if counts.pending and rollout.candidate != counts.pending and rollout.serial:
            if rollout.stable == counts.pending:
                counts.promoted += 1
            else:
                counts.revoked += 1
        counts.pending = rollout.candidate
        counts.stable = rollout.stable

    def _stale(self, version: int, error: StalePublisherError) -> None:
        try:
            registry = self._connection()
            newest = registry.newest_version()
        except RegistryError as failure:
            self._failed(failure)
            return
        if newest < version:  # so it was the epoch
            self._end(error)
        else:
            self._overtaken(registry, newest)

    def _overtaken(self, registry: WeightRegistry, version: int) -> None:
        """The registry is ahead: a publication of ours landed although its answer was lost, or another's."""
        try:
            epoch = registry.fetch(version).manifest.epoch
        except (RegistryError, WireError) as error:
            # Whose it is can't be told; if it is another's, the next publication is refused for its epoch.
            self.counts.version = version
            logger.warning("version %d can't be read, the next one is %d: %s", version, version + 1, error)
            return
        if epoch == self.counts.epoch:
            self._published(version)
        else:
            self._end(StalePublisherError(f"version {version} has epoch {epoch}"))

    def _published(self, version: int) -> None:
        self.counts.version = version
        self.counts.published += 1

    def _end(self, error: StalePublisherError) -> None:
        logger.error("another aligner took over, this one publishes no more: %s", error)
        self.counts.superseded = True

    def _refused(self, error: DecisionRefusedError) -> None:
        self.counts.refused += 1
        self._next_look = 0.0  # something happened that this publisher has not seen
        if self.counts.refused == 1:
            logger.warning("a version was refused; later ones are only counted: %s", error)

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
