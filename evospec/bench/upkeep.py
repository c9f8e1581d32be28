"""What changes between cycles cost a running engine: new active rows, and another adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import fmean, median
from time import perf_counter
from typing import Literal, Protocol

import numpy as np

from evospec.align.adaptation import lora_shape
from evospec.align.lora import Lora
from evospec.bench.costs import Change, Upkeep
from evospec.bench.measure import Batch, BenchEngine
from evospec.config import AlignmentConfig
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import StagedAdapter
from evospec.models.drafter import Drafter
from evospec.wire import TokenHits

UPDATE_ROWS = 256
_ROUNDS = 16  # of each kind of change
_MOST_BATCHES = 6  # decoded for them, where answers are short
_TOKENS = 128  # of an answer
_STEPS = 2  # that feel a change: rows are written behind the first one

Kind = Literal["none", "update", "swap"]


class ChangingEngine(BenchEngine, Protocol):
    """What is needed of `evospec.engine.engine.Engine`."""

    @property
    def drafter(self) -> Drafter | None: ...
    def offer_hits(self, request_id: str, hits: TokenHits) -> None: ...
    def stage_adapter(self, adapter: AdapterWeights) -> StagedAdapter: ...
    def swap_adapter(self, adapter: StagedAdapter | None) -> None: ...


@dataclass(frozen=True, slots=True)
class _Window:
    """A change and the steps after it; all of them followed one plan.

    Attributes:
        call: seconds of the change alone; `seconds`: of all.
        cycles: that ended meanwhile; a change may have to wait for one under way.
        rows: head rows written.
    """

    kind: Kind
    plan: str
    call: float
    seconds: float
    cycles: int
    rows: int
    captures: int


class _Changes:
    """Makes the changes, none of which alters what the engine drafts with for good.

    Rows: tokens taken at random, each offered once, as an index would offer them. Adapters: of the
    configured rank with deltas of zero, which take as long as any other.
    """

    def __init__(self, engine: ChangingEngine, vocab_size: int) -> None:
        self._engine = engine
        self._tokens = np.random.default_rng(0).permutation(vocab_size)
        self._next = 0
        self._adapter: StagedAdapter | None = None
        if engine.drafter is not None:
            config = AlignmentConfig()
            lora = Lora(engine.drafter, lora_shape(config), config.seed)
            self._adapter = engine.stage_adapter(lora.export(1))

    def of(self, kind: Kind, request_id: str) -> Callable[[], None]:
        """The change itself; what can be prepared is prepared here."""
        if kind == "none":
            return _nothing
        if kind == "swap":
            adapter = self._adapter
            return lambda: self._engine.swap_adapter(adapter)
        taken = np.take(self._tokens, range(self._next, self._next + UPDATE_ROWS), mode="wrap")
        self._next += UPDATE_ROWS
        hits = TokenHits(tuple(taken.tolist()), (1.0,) * len(taken))
        return lambda: self._engine.offer_hits(request_id, hits)


def measure_upkeep(engine: ChangingEngine, batch: Batch, vocab_size: int) -> Upkeep | None:
    """Decodes a batch again and again, with a change every few cycles; kinds take turns.

    Nothing of it goes to traces or index, and the adapter is the base afterwards. None where nothing
    drafts, and when answers are too short to tell.
    """
    if engine.drafter is None:
        return None
    changes = _Changes(engine, vocab_size)
    if engine.captures:
        list(_windows(engine, batch, changes))  # captures what these lengths need
    windows: list[_Window] = []
    for _ in range(_MOST_BATCHES):
        windows += _windows(engine, batch, changes)
        if sum(window.kind == "none" for window in windows) >= _ROUNDS:
            break
    engine.swap_adapter(None)
    return _summed_up(windows)


def _windows(engine: ChangingEngine, batch: Batch, changes: _Changes) -> Iterator[_Window]:
    for request in batch.requests:
        sampling = replace(request.sampling, ignore_eos=True)
        engine.admit(replace(request, sampling=sampling, trace=False))
    running = len(batch.requests)
    while engine.has_work and engine.stats.running < running:
        engine.step()
    number = 0
    while engine.stats.running == running:
        kind: Kind = ("none", "update", "swap")[number % 3]
        number += 1
        window = _window(engine, kind, changes.of(kind, batch.requests[0].id))
        if window is not None and engine.stats.running == running:
            yield window
    while engine.has_work:
        engine.step()


def _window(engine: ChangingEngine, kind: Kind, change: Callable[[], None]) -> _Window | None:
    """None when its steps followed several plans: their times can't be compared."""
    stats = engine.stats
    rows, captures, plans = stats.vocabulary_rows_changed, engine.captures, dict(stats.cycles_per_plan)
    began = perf_counter()
    change()
    called = perf_counter() - began
    for _ in range(_STEPS):
        engine.step()
    seconds = perf_counter() - began
    grown = {plan: count - plans.get(plan, 0) for plan, count in stats.cycles_per_plan.items()}
    followed = {plan: count for plan, count in grown.items() if count}
    if len(followed) != 1:
        return None
    (plan, cycles), written = next(iter(followed.items())), stats.vocabulary_rows_changed - rows
    return _Window(kind, plan, called, seconds, cycles, written, engine.captures - captures)


def _summed_up(windows: list[_Window]) -> Upkeep | None:
    """Of the plan that most windows followed."""
    plans = [window.plan for window in windows]
    usual = max(dict.fromkeys(plans), key=plans.count, default="")
    kinds: dict[Kind, list[_Window]] = {"none": [], "update": [], "swap": []}
    for window in windows:
        if window.plan == usual:
            kinds[window.kind].append(window)
    quiet = kinds["none"]
    if not quiet:
        return None
    cycle = median(window.seconds / window.cycles for window in quiet)
    ordinary = fmean(window.rows for window in quiet)
    return Upkeep(
        cycle_us=1e6 * cycle,
        captures=sum(window.captures for window in quiet),
        update=_change(kinds["update"], cycle, ordinary) if any(window.rows for window in windows) else None,
        swap=_change(kinds["swap"], cycle, None),
    )


def _change(windows: list[_Window], cycle: float, ordinary_rows: float | None) -> Change | None:
    """Args: cycle: seconds of one without a change; ordinary_rows: what windows without one wrote."""
    if not windows:
        return None
    added = median(window.seconds - window.cycles * cycle for window in windows)
    written = fmean(window.rows for window in windows)
    return Change(
        repeats=len(windows),
        rows=None if ordinary_rows is None else written - ordinary_rows,
        call_us=1e6 * median(window.call for window in windows),
        added_us=1e6 * added,
        share=added / cycle,
        captures=sum(window.captures for window in windows),
    )


def _nothing() -> None:
    pass


def upkeep_batch(batch: Batch, room: int) -> Batch:
    """The same requests, with answers of `_TOKENS`, or as many as fit into `room` positions."""
    requests = []
    for request in batch.requests:
        tokens = min(_TOKENS, max(1, room - len(request.prompt_ids)))
        requests.append(replace(request, sampling=replace(request.sampling, max_tokens=tokens)))
    return replace(batch, requests=tuple(requests))
