"""The least time a cycle can take: the bytes it must move, at the speed the device copies at.

Decoding one or a few requests is bound by memory: every weight is read once per pass and used
for few multiplications (Williams et al., "Roofline", 2009, where arithmetic intensity is low).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from evospec.bench.clock import Clock
from evospec.bench.measure import Turn
from evospec.engine.counters import total
from evospec.models.body import layer_kinds
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import KVCache
from evospec.models.target import Target

_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}  # many times what caches hold
_COPIES, _WARM_UP = 9, 2


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of one large copy: the median of several."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock, times = Clock(device), []
    for _ in range(_WARM_UP + _COPIES):
        clock.start()
        target.copy_(source)
        elapsed = clock.read()
        times.append(elapsed.wall if elapsed.device is None else elapsed.device)
    return 2 * source.numel() / median(times[_WARM_UP:])


@dataclass(frozen=True, slots=True)
class Workload:
    """Means per cycle of what was decoded.

    Attributes:
        drafting: share of cycles that drafted.
        steps: passes of the drafter: the depth of the draft.
        active_rows: head rows that each of them scores.
        contexts: tokens known of each running request, summed over requests.
        running: requests.
    """

    drafting: float
    steps: float
    active_rows: float
    contexts: float
    running: float

    @classmethod
    def of(cls, turns: Sequence[Turn], depths: Mapping[str, int]) -> Workload | None:
        """Args: depths: of the plans that the arm's cycles may follow. None without a cycle."""
        counters = total(turn.counters for turn in turns)
        plans, cycles = counters.cycles_per_plan, counters.cycles
        if not cycles:
            return None
        return cls(
            drafting=sum(count for plan, count in plans.items() if depths[plan]) / cycles,
            steps=sum(depths[plan] * count for plan, count in plans.items()) / cycles,
            active_rows=sum(turn.row_cycles for turn in turns) / cycles,
            contexts=sum(turn.key_cycles for turn in turns) / cycles,
            running=sum(turn.request_cycles for turn in turns) / cycles,
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that passes of a target and its drafter must read.

    Attributes:
        target_weights: all layers and norms, and the head once. Embeddings are looked up row by
            row: they count only where they are the head.
        target_key: keys and values of one position, in the layers that see the whole context.
        sliding_key: the same in the layers that see `window` positions at most.
        draft_fuse: what turns the target's features into the drafter's input, once per draft.
        draft_layer: the drafter's layer and norm, at each step.
        draft_key: keys and values of one position in the drafter.
        head_row: one row of the head that the drafter scores.
    """

    target_weights: int
    target_key: int
    sliding_key: int
    window: int
    draft_fuse: int = 0
    draft_layer: int = 0
    draft_key: int = 0
    head_row: int = 0

    @classmethod
    def of(cls, target: Target, drafter: Drafter | None) -> Traffic:
        config = target.model.config.to_dict()
        kinds = layer_kinds(target.model)
        key = _key_bytes(target.new_cache(1, 1))
        sliding = kinds.count("sliding_attention")
        plain = cls(
            target_weights=_weight_bytes(target),
            target_key=key * (len(kinds) - sliding),
            sliding_key=key * sliding,
            window=int(config.get("sliding_window") or 0),
        )
        if drafter is None:
            return plain
        head = drafter.tables(target.tables).head
        layer = sum(weight.nbytes for weight in drafter.layer.parameters())
        return replace(
            plain,
            draft_fuse=drafter.fc.weight.nbytes,
            draft_layer=layer + drafter.norm.weight.nbytes,
            draft_key=_key_bytes(drafter.new_cache(1, 1)),
            head_row=head.shape[1] * head.element_size(),
        )

    def cycle_bytes(self, work: Workload) -> float:
        """Bytes of a mean cycle:

            target weights + target keys * contexts
            + drafting * fuse + steps * (draft layer + draft keys * contexts + active rows * head row)

        Activations, logits and all that is written are left out: they are small beside this, and
        without them the time that follows is a lower bound.
        """
        seen = min(work.contexts, self.window * work.running)
        target = self.target_weights + self.target_key * work.contexts + self.sliding_key * seen
        step = self.draft_layer + self.draft_key * work.contexts + self.head_row * work.active_rows
        return target + work.drafting * self.draft_fuse + work.steps * step


@dataclass(frozen=True, slots=True)
class Roofline:
    """What bounds one arm: bytes, and the speed at which the device copies (bytes per second)."""

    traffic: Traffic
    depths: Mapping[str, int]
    bandwidth: float

    def cycle_seconds(self, turns: Sequence[Turn]) -> float | None:
        """The least time of a mean cycle of these turns; None without a cycle."""
        work = Workload.of(turns, self.depths)
        return None if work is None else self.traffic.cycle_bytes(work) / self.bandwidth


def _weight_bytes(target: Target) -> int:
    tables = target.tables
    looked_up = {tables.embedding.data_ptr(), tables.head.data_ptr()}
    body = [weight for weight in target.model.parameters() if weight.data_ptr() not in looked_up]
    return sum(weight.nbytes for weight in body) + tables.head.nbytes


def _key_bytes(cache: KVCache) -> int:
    """Key and value of one layer of a cache of one position."""
    return cache.keys[0].nbytes + cache.values[0].nbytes
