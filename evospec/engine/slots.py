"""What a runner holds for the request in each slot: keys and values, state, and context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from evospec.engine.batch_state import BatchState
from evospec.engine.contexts import ContextVectors
from evospec.engine.plan import DraftPlan
from evospec.engine.report import NOTHING, Wanted
from evospec.engine.scheduler import SlotMove
from evospec.engine.sizes import Sizes
from evospec.engine.state import RequestState
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import KVCache
from evospec.models.route_table import RouteTable
from evospec.models.routes import GENERAL
from evospec.models.target import Target

# Pairs that may wait for the drafter while decoding is plain: written many at once, they cost little.
MOST_PENDING = 16


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What a runner makes room for.

    Attributes:
        slots: requests running at once.
        max_length: tokens of a request.
        prefill_chunk: prompt tokens processed at once.
        plans: what cycles may do.
        draws: whether sampled rows' drafts are drawn from the drafter's distribution.
        wanted: the most that a cycle is asked to report.
        context_decay: see `ContextVectors`; None: nobody asks for them as tokens are emitted.
        adapters: kinds of traffic that there is room for adapters of.
        sizes: None: as the device needs them.
    """

    slots: int
    max_length: int
    prefill_chunk: int
    plans: Sequence[DraftPlan]
    draws: bool = False
    wanted: Wanted = NOTHING
    context_decay: float | None = None
    adapters: int = 0
    sizes: Sizes | None = None

    @property
    def places(self) -> int:
        """Tokens that a cycle emits per row, at most."""
        return max(plan.depth for plan in self.plans) + 1

    @property
    def pending_width(self) -> int:
        """Pairs that can wait for the drafter."""
        return MOST_PENDING + self.places

    @property
    def scratch(self) -> int:
        """Positions that a cycle writes past the last token that is kept, at most."""
        return max(self.pending_width, *(max(plan.nodes, plan.scratch) for plan in self.plans)) + 1


class Slots:
    """Caches, state and context of every slot.

    Attributes:
        draft_cache, contexts: None when there is no drafter, and when nobody asks.
        routes: which kind of traffic a request is of; None when all are of one.
    """

    __slots__ = ("_parked", "cache", "contexts", "draft_cache", "routes", "state")

    def __init__(self, target: Target, drafter: Drafter | None, settings: RunnerSettings) -> None:
        slots, device = settings.slots, target.device
        # Rows that hold no request write too: from `parked` on, nothing is ever read for a request.
        self._parked = settings.max_length + settings.scratch
        positions = self._parked + settings.scratch
        self.cache = target.new_cache(slots, positions)
        self.draft_cache = None if drafter is None else drafter.new_cache(slots, positions)
        features = 0 if drafter is None else drafter.config.feature_size
        self.state = BatchState(slots, settings.pending_width, features, target.dtype, device)
        self.contexts: ContextVectors | None = None
        self.routes: RouteTable | None = None
        if drafter is not None and settings.adapters:
            self.routes = RouteTable(settings.adapters, target.hidden_size, device)
        if settings.context_decay is not None or self.routes is not None:
            decay = 1.0 if settings.context_decay is None else settings.context_decay
            self.contexts = ContextVectors(slots, target.hidden_size, settings.places, decay, device)
        self.park(0, slots)

    @property
    def count(self) -> int:
        return self.cache.slots

    @property
    def advancing(self) -> list[Tensor]:
        """What a cycle changes by reading it."""
        means = [] if self.contexts is None else [self.contexts.means]
        return [*self.state.advancing, *means]

    def read(self, state: RequestState, hidden: Tensor) -> None:
        """Takes in the next part of a prompt [positions, hidden]: what it is about, and so what drafts for
        it."""
        if self.contexts is None:
            return
        self.contexts.read(state, hidden)
        if self.routes is not None:
            chosen = self.routes.choose(self.contexts.vector(state.slot)[None])
            self.state.choice[state.slot] = chosen[0]

    def move(self, move: SlotMove) -> None:
        """Copies a request's caches and state to another slot."""
        state = move.state
        self.copy(move.source, move.target, state.cached if state.emitted else state.prefilled)
        self.state.move(move.source, move.target)
        if self.contexts is not None:
            self.contexts.move(move.source, move.target)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a slot's caches."""
        if source == target:
            return
        self.cache.move(source, target, length)
        if self.draft_cache is not None:
            self.draft_cache.move(source, target, length)

    def take(self, cache: KVCache, draft_cache: KVCache | None, slot: int, length: int) -> None:
        """Copies the first positions of other caches' first slot."""
        self.cache.take(cache, slot, length)
        if self.draft_cache is not None and draft_cache is not None:
            self.draft_cache.take(draft_cache, slot, length)

    def park(self, first: int, last: int) -> None:
        """Slots [first, last) hold no running request: what they do in cycles must touch nobody's keys."""
        self.state.cached[first:last].fill_(self._parked)
        self.state.pending[first:last].fill_(0)
        self.state.remaining[first:last].fill_(0)
        self.state.choice[first:last].fill_(GENERAL)
