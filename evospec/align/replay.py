"""What the aligner remembers of the traffic: bounded in bytes, old topics included."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from evospec.align.clusters import OnlineClusters
from evospec.align.degenerate import is_degenerate
from evospec.align.random_state import RandomState
from evospec.align.replay_store import ReplayStore
from evospec.align.trace import Trace
from evospec.wire import Record

Count = Annotated[int, Field(ge=0, le=2**53)]


class Admission(StrEnum):
    """What became of an offered trace."""

    TRAINING = "training"
    HELD_OUT = "held_out"
    DEGENERATE = "degenerate"
    UNSCORED = "unscored"


@dataclass(slots=True)
class ReplayCounts:
    """Monotonic counters."""

    training: int = 0
    held_out: int = 0
    degenerate: int = 0
    unscored: int = 0
    evicted: int = 0
    discarded: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A cluster without a number, and how many of its traces are kept."""

    place: int
    traces: int


class ReplaySummary(Record):
    """What a buffer went through, without the traces: its successor counts and draws on from there."""

    training: Count
    held_out: Count
    degenerate: Count
    unscored: Count
    discarded: Count
    random: RandomState

    @model_validator(mode="after")
    def _adds_up(self) -> ReplaySummary:
        if self.discarded > self.training + self.held_out:
            raise ValueError("more traces were discarded than admitted")
        return self


class ReplayBuffer:
    """Training and held-out traces, split as they arrive: a held-out trace is never trained on.

    Equal seeds and equal arrivals give equal contents and samples.
    """

    __slots__ = ("_clusters", "_held_out", "_holdout", "_rng", "_training", "counts")

    def __init__(self, capacity_bytes: int, holdout: float, seed: int, clusters: int = 1) -> None:
        """`holdout` is the share of arrivals, and of the bytes, kept from training; `clusters` are the kinds
        of traffic that the bytes are shared out to, at most."""
        self._clusters = OnlineClusters(clusters)
        self._rng = np.random.default_rng(seed)
        self._holdout = holdout
        held_out_bytes = int(capacity_bytes * holdout)
        place = self._clusters.place
        self._training = ReplayStore(capacity_bytes - held_out_bytes, self._rng, place)
        self._held_out = ReplayStore(held_out_bytes, self._rng, place)
        self.counts = ReplayCounts()

    @property
    def nbytes(self) -> int:
        """Bytes of all traces, with what Python adds to each."""
        return self._training.nbytes + self._held_out.nbytes

    @property
    def clusters(self) -> OnlineClusters:
        """Kinds of traffic seen so far."""
        return self._clusters

    @property
    def training_traces(self) -> int:
        return len(self._training)

    @property
    def held_out_traces(self) -> int:
        return len(self._held_out)

    def add(self, trace: Trace) -> Admission:
        """Admits a trace to one of the two sides, or refuses it; either way it is counted."""
        # The first position of a window is never drafted inside it.
        if not trace.generated[1:].any():
            self.counts.unscored += 1
            return Admission.UNSCORED
        if is_degenerate(trace.token_ids[1:][trace.generated]):
            self.counts.degenerate += 1
            return Admission.DEGENERATE
        self._clusters.learn(trace)
        if self._draw_held_out():
            self.counts.held_out += 1
            self.counts.evicted += self._held_out.add(trace)
            return Admission.HELD_OUT
        self.counts.training += 1
        self.counts.evicted += self._training.add(trace)
        return Admission.TRAINING

    def sides(self, kind: int | None = None) -> tuple[int, int]:
        """Training and held-out traces, of one kind or all."""
        return len(self._of_kind(self._training, kind)), len(self._of_kind(self._held_out, kind))

    def sample(self, count: int, kind: int | None = None) -> list[Trace]:
        """Up to `count` distinct training traces, of one kind or all, each equally likely."""
        return self._drawn(self._of_kind(self._training, kind), count)

    def sample_held_out(self, count: int, kind: int | None = None) -> list[Trace]:
        """Up to `count` distinct held-out traces, of one kind or all, each equally likely."""
        return self._drawn(self._of_kind(self._held_out, kind), count)

    def waiting(self, fewest: int, share: float) -> Waiting | None:
        """Of clusters without a number the one with most traces here; None: no such cluster has `fewest`
        traces, with some on both sides, and such a share of the requests."""
        clusters = self._clusters
        places = clusters.unnumbered(share)
        if not places:
            return None
        sides = [clusters.places_of(store.traces()).tolist() for store in (self._training, self._held_out)]
        held = {place: [side.count(place) for side in sides] for place in places}
        ripe = [
            Waiting(place, sum(counts))
            for place, counts in held.items()
            if min(counts) > 0 and sum(counts) >= fewest
        ]
        return max(ripe, key=lambda one: one.traces, default=None)

    def discard(self, traces: Collection[Trace]) -> None:
        """Removes traces that turned out to be harmful."""
        identities = {id(trace) for trace in traces}
        self.counts.discarded += self._training.remove(identities) + self._held_out.remove(identities)

    def summary(self) -> ReplaySummary:
        counts = self.counts
        return ReplaySummary(
            training=counts.training,
            held_out=counts.held_out,
            degenerate=counts.degenerate,
            unscored=counts.unscored,
            discarded=counts.discarded,
            random=RandomState.of(self._rng),
        )

    def resume(self, earlier: ReplaySummary) -> None:
        """Counts on from a buffer that is gone, and draws what it would have drawn next.

        The traces it had are lost, so they count as evicted.
        """
        counts = self.counts
        counts.training += earlier.training
        counts.held_out += earlier.held_out
        counts.degenerate += earlier.degenerate
        counts.unscored += earlier.unscored
        counts.discarded += earlier.discarded
        counts.evicted += earlier.training + earlier.held_out - earlier.discarded
        earlier.random.apply(self._rng)

    def _of_kind(self, store: ReplayStore, kind: int | None) -> list[Trace]:
        """As the kinds are now: their centres move, and what replicas go by moves with them."""
        traces = store.traces()
        if kind is None:
            return traces
        kinds = self._clusters.kinds_of(traces).tolist()
        return [trace for trace, its in zip(traces, kinds, strict=True) if its == kind]

    def _drawn(self, traces: Sequence[Trace], count: int) -> list[Trace]:
        chosen = self._rng.choice(len(traces), min(count, len(traces)), replace=False)
        return [traces[index] for index in chosen.tolist()]

    def _draw_held_out(self) -> bool:
        """Random, yet after n arrivals the held-out ones are within one of holdout * n.

        An independent draw per trace could leave the gate without any trace for long.
        """
        arrivals = self.counts.training + self.counts.held_out + 1
        missing = self._holdout * arrivals - self.counts.held_out
        return bool(self._rng.random() < missing)
