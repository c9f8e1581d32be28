"""The decoding engine: requests in, tokens out, one step at a time, with no I/O of its own.

Its owner calls `step` in a loop from one thread, drains the outboxes (traces,
look-ups, points) and delivers what comes back (adapters, retrieved tokens)
between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from evospec.align.recorder import TraceRecorder
from evospec.align.trace import Trace
from evospec.config import EngineConfig
from evospec.engine.admission import check_request
from evospec.engine.controller import Controller
from evospec.engine.observer import Emission, Observer
from evospec.engine.passes import Outcome, Verified
from evospec.engine.plan import plans_of
from evospec.engine.prefix import PrefixIndex
from evospec.engine.request import Request, StepOutput
from evospec.engine.runner import Runner
from evospec.engine.scheduler import Scheduler
from evospec.engine.state import RequestState
from evospec.engine.stats import EngineStats
from evospec.errors import InvalidRequestError, WireError
from evospec.models.adapter import AdapterSlot, AdapterWeights, StagedAdapter
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.stopwatch import NO_STOPWATCH, Stopwatch
from evospec.vocab.active import HeadView
from evospec.vocab.policy import VocabularyPolicy
from evospec.vocab.semantic import Lookup, SemanticSource
from evospec.wire import Fingerprints, IndexPoint, TokenHits


class Engine:
    """Continuous batching over one target and, unless decoding is plain, one drafter.

    Args:
        vocabulary: which rows the drafter scores; None scores the full head.
        ranked_k: target's best tokens reported to the vocabulary per position.
        prompt_ranked: latest prompt positions they are reported for at prefill.
        trace_k: target's best tokens per traced position.
        recorder: where acceptance traces are assembled; None records none.
        semantic: the request contexts to search for; None searches nothing.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        config: EngineConfig,
        fingerprints: Fingerprints,
        *,
        vocabulary: VocabularyPolicy | None = None,
        ranked_k: int = 0,
        prompt_ranked: int = 0,
        trace_k: int = 0,
        recorder: TraceRecorder | None = None,
        semantic: SemanticSource | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.fingerprints = fingerprints
        self.max_length = min(config.max_length, target.max_length)
        self.stats = EngineStats()
        self._config = config
        self._vocabulary = vocabulary
        self._recorder = recorder
        self._semantic = semantic
        self._stopwatch: Stopwatch = NO_STOPWATCH
        self._observer = Observer(
            target,
            vocabulary,
            recorder,
            semantic,
            ranked_k=ranked_k,
            prompt_ranked=prompt_ranked,
            trace_k=trace_k,
        )
        self._adapter = AdapterSlot(drafter) if drafter is not None else None
        self._scheduler = Scheduler(config.max_batch)
        self._prefixes = PrefixIndex(config.max_batch)
        self._tables = target.tables if drafter is None else drafter.tables(target.tables)
        plans = plans_of(config, drafts=drafter is not None)
        self._controller = Controller(plans)
        self._runner = Runner(
            target,
            drafter,
            config.max_batch,
            self.max_length,
            plans,
            draws=config.sampled_drafts == "drawn",
        )
        self._update_gauges()

    # --- what the owner calls ---

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def admit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InvalidRequestError: it can never be served.
        """
        check_request(request, self.max_length, self.target.vocab_size)
        if self._scheduler.find(request.id) is not None:
            raise InvalidRequestError(f"request id {request.id} is running already", "id")
        self._scheduler.enqueue(RequestState(request, list(request.prompt_ids)))
        self._update_gauges()

    def cancel(self, request_id: str) -> None:
        """Ends a request at the next step; unknown ids are ignored: it may just have finished."""
        state = self._scheduler.find(request_id)
        if state is not None:
            state.cancelled = True

    def stage_adapter(self, adapter: AdapterWeights) -> StagedAdapter:
        """Checks an adapter and prepares it for `swap_adapter`; any thread may call it, during steps too.

        Raises:
            WireError: it does not fit, or there is no drafter.
        """
        if self._adapter is None:
            raise WireError("decoding is plain here: there is no drafter to adapt")
        return self._adapter.stage(adapter)

    def swap_adapter(self, adapter: StagedAdapter | AdapterWeights | None) -> None:
        """Writes an adapter into the drafter (None: the base); call between steps.

        Running requests go on; see `AdapterSlot` for what a swap means to them.

        Raises:
            WireError: it was not staged and does not fit; the drafter is unchanged.
        """
        if self._adapter is None:
            return
        self._adapter.swap(adapter)
        self._runner.refresh()
        self.stats.adapter_swaps += 1
        self.stats.adapter_version = self._adapter.version

    def offer_hits(self, request_id: str, hits: TokenHits) -> None:
        """Delivers retrieved tokens; late ones, for a finished request, are dropped."""
        if self._vocabulary is not None and self._scheduler.find(request_id) is not None:
            self._vocabulary.retrieved(hits.token_ids, hits.weights)

    def take_traces(self) -> list[Trace]:
        return self._recorder.take() if self._recorder is not None else []

    def take_lookups(self) -> list[Lookup]:
        return self._semantic.take_lookups() if self._semantic is not None else []

    def take_points(self) -> list[IndexPoint]:
        return self._semantic.take_points() if self._semantic is not None else []

    def watch(self, stopwatch: Stopwatch) -> None:
        """Shows a stopwatch the parts of every cycle from now on; call between steps."""
        self._stopwatch = stopwatch
        self._runner.watch(stopwatch)

    def step(self) -> list[StepOutput]:
        """Processes one prefill chunk and one cycle; returns what was emitted."""
        outputs = self._drop_cancelled()
        outputs += self._prefill()
        self._retire()
        outputs += self._cycle()
        self._retire()
        if self._vocabulary is not None:
            self._stopwatch.mark("vocabulary")
            self.stats.vocabulary_rows_changed += self._vocabulary.apply()
            self._stopwatch.mark("host")
        self._update_gauges()
        if self._recorder is not None:
            self._recorder.stamp(self.stats.adapter_version, self.stats.vocabulary_epoch)
        return outputs

    # --- one step ---

    def _prefill(self) -> list[StepOutput]:
        state = self._scheduler.start_prefill()
        if state is None:
            return []
        began = perf_counter()
        if state.prefilled == 0:
            self._observer.admit(state)
            self._reuse_prefix(state)
        before = state.prefilled
        prompted = self._runner.prefill(state, self._config.prefill_chunk)
        self.stats.prompt_tokens += state.prefilled - before
        outputs = []
        if prompted is not None:
            self._scheduler.start_running(state)
            self._observer.prompt(state, prompted)
            outcome = Outcome.of(prompted.decided.verdict)
            outputs = self._commit([state], [0], 0, prompted.decided, outcome)
        self.stats.prefill_seconds += perf_counter() - began
        return outputs

    def _reuse_prefix(self, state: RequestState) -> None:
        """Begins a prompt where an earlier one of the same tenant had the same tokens."""
        prefix = self._prefixes.find(state.request.tenant, state.request.prompt_ids, self._scheduler.running)
        self._prefixes.forget(state.slot)
        if prefix is None:
            return
        # The drafter's pair at the last common position holds the token after it: it is made anew.
        state.prefilled = prefix.length - 1
        self._runner.copy(prefix.slot, state.slot, state.prefilled)
        self.stats.reused_prompt_tokens += state.prefilled

    def _cycle(self) -> list[StepOutput]:
        states = self._scheduler.running
        if not states:
            return []
        began = perf_counter()
        plan = self._controller.choose(len(states))
        head = self._head()
        step = self._runner.step(states, plan, head)
        depths = [min(plan.depth, state.remaining - 1) for state in states]
        draft = self._runner.draft(step, head)
        drafted = perf_counter()
        decided = self._runner.verify(step, draft)
        outcome = Outcome.of(decided.verdict)
        self._runner.confirm(states, step, [count + 1 for count in outcome.accepted])
        outputs = self._commit(states, depths, plan.nodes, decided, outcome)
        ended = perf_counter()
        self._controller.observe(plan, ended - began, depths, outcome.accepted[: len(states)])
        self.stats.count_cycle(str(plan))
        self.stats.draft_seconds += drafted - began
        self.stats.verify_seconds += ended - drafted
        return outputs

    def _commit(
        self,
        states: Sequence[RequestState],
        depths: list[int],
        nodes: int,
        decided: Verified,
        outcome: Outcome,
    ) -> list[StepOutput]:
        """Ends requests and reports what happened."""
        top = self._observer.top_tokens(decided.logits)
        outputs = []
        for row, state in enumerate(states):
            accepted = outcome.accepted[row]
            kept = state.accept(outcome.tokens[row][: accepted + 1], self.target.eos_ids)
            emission = Emission(
                row=row,
                tokens=kept,
                drafted=depths[row],
                accepted=accepted,
                missed=self._observer.missed(kept),
            )
            self._observer.emitted(state, emission, decided, top)
            self._count(emission, nodes)
            first = bool(depths[row]) and outcome.first[row]
            outputs.append(
                StepOutput(state.request.id, tuple(kept), depths[row], accepted, state.finish, first)
            )
            if state.finish is not None:
                self._finish(state)
        return outputs

    def _count(self, emission: Emission, nodes: int) -> None:
        stats = self.stats
        stats.emitted_tokens += len(emission.tokens)
        stats.count_draft(emission.drafted, emission.accepted, nodes)
        if emission.drafted:
            stats.coverable_tokens += len(emission.tokens)
            stats.covered_tokens += len(emission.tokens) - int(emission.missed.sum())

    def _finish(self, state: RequestState) -> None:
        self._observer.finish(state)
        if state.cancelled:
            self.stats.requests_cancelled += 1
        else:
            self.stats.requests_finished += 1

    def _drop_cancelled(self) -> list[StepOutput]:
        """Ends cancelled requests wherever they are; running ones free their slot in this step."""
        gone = self._scheduler.drop_cancelled()
        for state in gone:
            self._finish(state)
        return [StepOutput(state.request.id, (), finish_reason="cancelled") for state in gone]

    def _retire(self) -> None:
        before = len(self._scheduler.running)
        for state in self._scheduler.running:
            if state.finish is not None:
                self._prefixes.record(state)
        for move in self._scheduler.retire():
            self._runner.move(move)
            self._prefixes.move(move)
        after = len(self._scheduler.running)
        if after < before:
            self._runner.park(after, before)

    def _head(self) -> HeadView:
        if self._vocabulary is None:
            return HeadView(self._tables.head, self._tables.head_ids)
        return self._vocabulary.head()

    def _update_gauges(self) -> None:
        stats = self.stats
        stats.running = len(self._scheduler.running)
        stats.waiting = len(self._scheduler.waiting) + (self._scheduler.prefilling is not None)
        stats.active_rows = self._head().count
        stats.draft_plan = str(self._controller.current)
        stats.plan_switches = self._controller.switches
        stats.vocabulary_epoch = self._vocabulary.epoch if self._vocabulary is not None else 0
