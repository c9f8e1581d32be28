"""Which published version the aligner's training goes on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actors.offer import Offer
from actors.publisher import Publication, WeightPublisher
from evospec.align.trainer import AlignmentTrainer
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights

logger = logging.getLogger(__name__)

MAX_MISSES = 3  # a version that a reachable registry fails to deliver this often is given up


@dataclass(frozen=True, slots=True)
class Standing:
    """A version that training stood on, as it was published."""

    adapter: AdapterWeights = field(default_factory=lambda: AdapterWeights(0, {}))
    metrics: Mapping[str, float] = field(default_factory=dict)


class Lineage:
    """Keeps the trainer on the stable version, or on the candidate that it published last.

    What the registry says decides: when a candidate was revoked, or an operator rolled back, the
    trainer goes back to the stable version's weights with fresh moments. A new trainer goes on from
    the stable version's training state as well. A version that can't be trained on (damaged, made
    for other models, of another rank) is replaced by the base.
    """

    def __init__(self, trainer: AlignmentTrainer, publisher: WeightPublisher) -> None:
        self._trainer = trainer
        self._publisher = publisher
        self._basis: int | None = None  # version that the trainer stands on, or that it had to give up
        self._standing = Standing()
        self._stable = Standing()
        self._misses = 0

    @property
    def started(self) -> bool:
        """Whether there is a version to train from; version 0 is the base."""
        return self._basis is not None

    def follow(self) -> bool:
        """Looks what became of the versions; True when the trainer had to leave the weights it stood on."""
        rollout = self._publisher.look()
        if rollout is None or self._publisher.counts.superseded:
            return False
        if not rollout.serial:
            self._outlive_registry()
            return False
        if self._basis == rollout.stable:
            self._stable = self._standing
            return False
        if self._basis and self._basis == rollout.candidate:
            return False
        return self._move(rollout.stable)

    def offer(self, adapter: AdapterWeights, metrics: Mapping[str, float]) -> Publication:
        """Publishes the trainer's candidate and goes on from it."""
        state = self._trainer.training_state(adapter.version).to_bytes()
        offer = Offer(adapter, self._standing.adapter.version, metrics, state)
        outcome = self._publisher.publish(offer)
        if outcome is Publication.PUBLISHED:
            self._trainer.accept()
            self._basis = adapter.version
            self._standing = Standing(adapter, metrics)
        return outcome

    def _move(self, version: int) -> bool:
        first = self._basis is None
        try:
            standing = self._load(version, resume=first)
        except WireError as error:
            logger.warning("version %d can't be trained on, going on from the base: %s", version, error)
            standing = Standing()
            self._trainer.restore(standing.adapter)
        if standing is None:
            return False
        if not first:
            logger.warning("version %d is stable now: training goes on from it", version)
        self._basis = version
        self._standing = self._stable = standing
        self._misses = 0
        return not first

    def _load(self, version: int, *, resume: bool) -> Standing | None:
        """Gives the trainer the version's weights; None when the registry does not deliver them now."""
        kept = {0: Standing(), self._stable.adapter.version: self._stable}.get(version)
        if kept is not None:
            self._trainer.restore(kept.adapter)
            return kept
        weights = self._publisher.fetch(version)
        if weights is None:
            self._misses += 1
            if self._misses < MAX_MISSES:
                return None
            raise WireError("the registry names it and does not deliver it")
        adapter = AdapterWeights.from_bytes(weights.blob, version, self._trainer.drafter)
        self._trainer.restore(adapter)
        if resume:
            self._resume(version)
        return Standing(adapter, weights.manifest.metrics)

    def _resume(self, version: int) -> None:
        try:
            state = self._publisher.fetch_training_state(version)
            if state is None:
                raise WireError("its training state is not to be had")
            self._trainer.resume(state)
        except WireError as error:
            logger.warning("version %d: going on with fresh moments: %s", version, error)

    def _outlive_registry(self) -> None:
        """Nothing was ever published, or the registry lost it: then the stable version is published again."""
        lost = self._stable.adapter.version
        if self._basis is None:
            self._basis = 0
        if not lost:
            return
        adapter = replace(self._stable.adapter, version=self._publisher.next_version)
        offer = Offer(adapter, lost, self._stable.metrics)
        if self._publisher.publish(offer, at_once=True) is not Publication.PUBLISHED:
            return
        logger.warning("the registry lost its data: version %d is there again as %d", lost, adapter.version)
        self._stable = replace(self._stable, adapter=adapter)
        if self._basis == lost:
            self._trainer.renumber(adapter.version)
            self._basis = adapter.version
            self._standing = self._stable
