"""What the aligner remembers of the traffic: bounded in bytes, old topics included."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from evospec.align.clusters import OnlineClusters
from evospec.align.degenerate import is_degenerate
from evospec.align.random_state import RandomState
from evospec.align.trace import Trace
from evospec.wire import Record

Count = Annotated[int, Field(ge=0, le=2**53)]

RECENT_SHARE = 0.25
_OBJECT_BYTES = 2048  # Python objects around the arrays: they count when traces are tiny


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


class Reservoir:
    """A uniform sample, bounded in bytes, of everything ever offered.

    Each item draws a key from U(0, 1); items with the smallest keys stay, as many as
    fit, and no item above the smallest key ever turned away is let in later. With equal
    sizes that is reservoir sampling (Vitter 1985) in the random-sort form of Efraimidis
    and Spirakis (2006) with equal weights: after n offers each item is kept with the same
    probability, whether it came first or last. Unlike Vitter's slots it needs no equal sizes.
    """

    __slots__ = ("_heap", "_offers", "_threshold", "capacity", "nbytes")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self._heap: list[tuple[float, int, Trace]] = []  # the largest key on top, hence negated
        self._offers = 0
        self._threshold = 1.0

    def shrink(self, capacity: int) -> int:
        """Has less room from now on; returns how many traces were put out."""
        self.capacity = capacity
        return self._put_out()

    def offer(self, trace: Trace, key: float) -> int:
        """Returns how many traces were turned away or put out."""
        self._offers += 1
        if key >= self._threshold:
            return 1
        heapq.heappush(self._heap, (-key, self._offers, trace))
        self.nbytes += stored_bytes(trace)
        return self._put_out()

    def _put_out(self) -> int:
        evicted = 0
        while self.nbytes > self.capacity:
            negated, _, victim = heapq.heappop(self._heap)
            self.nbytes -= stored_bytes(victim)
            self._threshold = -negated
            evicted += 1
        return evicted

    def remove(self, identities: Collection[int]) -> int:
        kept = [entry for entry in self._heap if id(entry[2]) not in identities]
        removed = len(self._heap) - len(kept)
        heapq.heapify(kept)
        self._heap = kept
        self.nbytes = sum(stored_bytes(entry[2]) for entry in kept)
        return removed

    def traces(self) -> list[Trace]:
        return [trace for _, _, trace in self._heap]


class ReplayStore:
    """The latest traces, and a uniform sample of all those before them, per kind of traffic.

    A pure reservoir of a long stream hardly takes anything new, and a pure queue
    forgets a topic as soon as another fills it. So RECENT_SHARE of the bytes is a
    queue, and what falls out of it is offered to the reservoir of its cluster. Reservoirs share
    the rest in equal parts: a kind of traffic keeps its part however much of others comes.
    """

    __slots__ = (
        "_capacity",
        "_recent",
        "_recent_bytes",
        "_recent_capacity",
        "_reservoirs",
        "_rng",
    )

    def __init__(self, capacity: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._recent: deque[tuple[Trace, int]] = deque()
        self._recent_bytes = 0
        self._recent_capacity = int(capacity * RECENT_SHARE)
        self._capacity = capacity - self._recent_capacity
        self._reservoirs: dict[int, Reservoir] = {}

    @property
    def nbytes(self) -> int:
        return self._recent_bytes + sum(reservoir.nbytes for reservoir in self._reservoirs.values())

    def __len__(self) -> int:
        return len(self._recent) + sum(len(reservoir.traces()) for reservoir in self._reservoirs.values())

    def add(self, trace: Trace, cluster: int = 0) -> int:
        """Returns how many traces left for it."""
        self._recent.append((trace, cluster))
        self._recent_bytes += stored_bytes(trace)
        evicted = 0
        while self._recent_bytes > self._recent_capacity:
            oldest, its_cluster = self._recent.popleft()
            self._recent_bytes -= stored_bytes(oldest)
            evicted += self._open(its_cluster)
            evicted += self._reservoirs[its_cluster].offer(oldest, self._rng.random())
        return evicted

    def sample(self, count: int) -> list[Trace]:
        """Up to `count` distinct traces, each equally likely."""
        kept = [trace for reservoir in self._reservoirs.values() for trace in reservoir.traces()]
        traces = [*kept, *(trace for trace, _ in self._recent)]
        chosen = self._rng.choice(len(traces), min(count, len(traces)), replace=False)
        return [traces[index] for index in chosen.tolist()]

    def remove(self, identities: Collection[int]) -> int:
        kept = [entry for entry in self._recent if id(entry[0]) not in identities]
        removed = len(self._recent) - len(kept)
        self._recent = deque(kept)
        self._recent_bytes = sum(stored_bytes(trace) for trace, _ in kept)
        return removed + sum(reservoir.remove(identities) for reservoir in self._reservoirs.values())

    def _open(self, cluster: int) -> int:
        """Makes room for a cluster that has no reservoir; returns how many traces left for it."""
        if cluster in self._reservoirs:
            return 0
        part = self._capacity // (len(self._reservoirs) + 1)
        evicted = sum(reservoir.shrink(part) for reservoir in self._reservoirs.values())
        self._reservoirs[cluster] = Reservoir(part)
        return evicted


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
        self._training = ReplayStore(capacity_bytes - held_out_bytes, self._rng)
        self._held_out = ReplayStore(held_out_bytes, self._rng)
        self.counts = ReplayCounts()

    @property
    def nbytes(self) -> int:
        """Bytes of all traces, with what Python adds to each."""
        return self._training.nbytes + self._held_out.nbytes

    @property
    def clusters(self) -> int:
        """Kinds of traffic seen so far."""
        return self._clusters.count

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
        cluster = self._clusters.assign(trace)
        if self._draw_held_out():
            self.counts.held_out += 1
            self.counts.evicted += self._held_out.add(trace, cluster)
            return Admission.HELD_OUT
        self.counts.training += 1
        self.counts.evicted += self._training.add(trace, cluster)
        return Admission.TRAINING

    def sample(self, count: int) -> list[Trace]:
        """Up to `count` distinct training traces, each equally likely."""
        return self._training.sample(count)

    def sample_held_out(self, count: int) -> list[Trace]:
        """Up to `count` distinct held-out traces, each equally likely."""
        return self._held_out.sample(count)

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

    def _draw_held_out(self) -> bool:
        """Random, yet after n arrivals the held-out ones are within one of holdout * n.

        An independent draw per trace could leave the gate without any trace for long.
        """
        arrivals = self.counts.training + self.counts.held_out + 1
        missing = self._holdout * arrivals - self.counts.held_out
        return bool(self._rng.random() < missing)


def stored_bytes(trace: Trace) -> int:
    return trace.nbytes + _OBJECT_BYTES
