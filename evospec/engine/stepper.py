"""One step of an engine: a chunk of prompts and a cycle, launched early and learned from late."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from evospec.config import EngineConfig
from evospec.engine.controller import Controller
from evospec.engine.flight import Flight, overlaps
from evospec.engine.host_copy import fetch
from evospec.engine.learning import Learning
from evospec.engine.lessons import Emission
from evospec.engine.observer import Learners, Observer
from evospec.engine.plan import DraftPlan, plans_of
from evospec.engine.prompting import Begun, Prompting
from evospec.engine.report import Report
from evospec.engine.request import StepOutput
from evospec.engine.runner import Runner
from evospec.engine.scheduler import Scheduler
from evospec.engine.sizes import Sizes
from evospec.engine.slots import RunnerSettings
from evospec.engine.state import RequestState
from evospec.engine.stats import EngineStats
from evospec.engine.trace_pasts import TracePasts
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.stopwatch import NO_STOPWATCH, Stopwatch
from evospec.vocab.head_rows import HeadView


class Stepper:
    """Schedules requests, runs them and counts.

    A cycle is launched before the last one is learned from: bookkeeping takes the time that the
    device is busy anyway. What it changes is enqueued behind the cycle under way, and is in force
    from the next one on.

    With `overlap`, a cycle is launched even before the last one's outcome is known, so that the
    device never waits for the host: which requests run, and where, changes only while nothing is
    under way. A request that ends is in one cycle too many, whose tokens nobody reads. Learning takes no
    more time than the host has to spare: what is left goes on in later cycles, then from several at once.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        config: EngineConfig,
        max_length: int,
        learners: Learners,
        sizes: Sizes | None,
        adapters: int = 0,
    ) -> None:
        self.stats = EngineStats()
        prefill_chunk = min(config.prefill_chunk, max_length)
        self.scheduler = Scheduler(config.max_batch)
        tables = target.tables if drafter is None else drafter.tables(target.tables)
        self._full_head = HeadView(tables.head, tables.head_ids)
        self._vocabulary = learners.vocabulary
        plans = plans_of(config, drafts=drafter is not None, prunes=self._prunes())
        self.runner = Runner(
            target,
            drafter,
            RunnerSettings(
                slots=config.max_batch,
                max_length=max_length,
                prefill_chunk=prefill_chunk,
                plans=plans,
                draws=config.sampled_drafts == "drawn",
                wanted=learners.wanted(target.vocab_size, traced=True),
                context_decay=learners.context_decay,
                adapters=adapters,
                sizes=sizes,
            ),
        )
        self._target = target
        slots = self.runner.slots
        pasts = None
        if learners.recorder is not None and slots.draft_cache is not None:
            pasts = TracePasts(learners.recorder, slots.draft_cache, self.stats)
        self._observer = Observer(target, learners, slots.contexts, pasts)
        self._learning = Learning(self._observer, self.stats)
        self._prompting = Prompting(
            self.runner, self.scheduler, self._observer, self._learning, self.stats, prefill_chunk
        )
        self._controller = Controller(plans)
        self._overlaps = overlaps(config, target.device)
        self._overlap = self._overlaps
        self._watched = False
        self._flight: Flight | None = None
        self._adapter_version = 0  # of the next cycle to be launched
        self._landed_at = 0.0
        self._cycle_seconds = 0.0  # of the last cycle
        self._outputs: list[StepOutput] = []  # of cycles that ended between steps
        self.update_gauges()

    def watch(self, stopwatch: Stopwatch) -> None:
        self.settle()
        # A stopwatch waits for each cycle, to tell its parts from the next one's.
        self._watched = stopwatch is not NO_STOPWATCH
        self._overlap = self._overlaps and not self._watched
        if self._vocabulary is not None:
            self._learning.stopwatch = stopwatch
        self.runner.watch(stopwatch)

    def prepare(self, longest: int) -> None:
        """Captures what cycles of usual sizes launch; nothing may be running."""
        self.runner.prepare(self._controller.plans, self._head_of, self._observer.wanted, longest)

    def step(self) -> list[StepOutput]:
        """Processes prompts, as much as one chunk of them, and one cycle; returns what was emitted.

        Without requests it learns a part of what they left.
        """
        if not self.scheduler.has_work:
            self._learning.go_on()
            self.update_gauges()
            return []
        if self._flight is not None and self._regroups(self._flight):
            self.settle()
        outputs, self._outputs = self._outputs, []
        if self._flight is None:
            self._prompting.retire()
            outputs += self._drop_cancelled()
            outputs += self._prefill()
            self._prompting.retire()
        outputs += self._cycle(waited_for=bool(outputs))
        if self._flight is not None and not self._flight.wanted:
            self._flight = None  # nobody reads it
        if self._flight is None:
            self._prompting.retire()
            self.stats.adapter_version = self._adapter_version
        self.update_gauges()
        return outputs

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._learning.behind

    def settle(self) -> None:
        """Lets the cycle under way end, if there is one; the next step returns what it emitted."""
        flight, self._flight = self._flight, None
        if flight is not None and flight.wanted:
            self._outputs += self._land(flight)

    def offered(self) -> None:
        """The vocabulary was told of tokens that an index found."""
        self._learning.offered()

    def adapted(self, version: int) -> None:
        """The drafter's weights have changed, behind the cycle under way: that one is of the last version."""
        self.runner.refresh()
        self.stats.adapter_swaps += 1
        self._adapter_version = version
        if self._flight is None:
            self.stats.adapter_version = version

    def _regroups(self, flight: Flight) -> bool:
        """Whether other requests are to run than those of a cycle under way."""
        return self.scheduler.can_prefill or self.scheduler.has_dropped or not flight.settled

    def update_gauges(self) -> None:
        stats = self.stats
        stats.running = len(self.scheduler.running)
        stats.waiting = len(self.scheduler.waiting) + (self.scheduler.prefilling is not None)
        stats.active_rows = self._head().count
        stats.draft_plan = self._controller.current.name
        stats.plan_switches = self._controller.switches
        stats.requests_untraced = self._observer.skipped
        if self._vocabulary is not None and self._vocabulary.epoch != stats.vocabulary_epoch:
            stats.vocabulary_epoch = self._vocabulary.epoch
            stats.rows_by_source = self._vocabulary.sources()

    # --- parts of a step ---

    def _prefill(self) -> list[StepOutput]:
        """Processes prompts, as much as one chunk of them; requests begin whose prompts are complete."""
        if not self.scheduler.can_prefill:
            return []
        began = perf_counter()
        launched = self._prompting.launch(self._head().active)
        if launched and self._overlap:  # beside the device, which is busy with them
            self._learning.read_prompts()
        outputs = [self._begin(begun) for begun in launched]
        if outputs and not self._overlap:  # else the device would wait, for longer than the first draft gains
            self._learning.catch_up()
        self.stats.prefill_seconds += perf_counter() - began
        return outputs

    def _begin(self, begun: Begun) -> StepOutput:
        """Waits for a request's first token."""
        report = begun.prompted.report()
        self.stats.count_choice(report.choice(0))
        emission = self._emit(begun.state, 0, 0, report)
        self._observer.note(report, [emission], begun.features)
        return _output(emission, report)

    def _cycle(self, *, waited_for: bool) -> list[StepOutput]:
        """Args: waited_for: this step has emitted something, which need not wait for a cycle to end."""
        flight, self._flight = self._flight, None
        if flight is None:
            if not self.scheduler.running:
                return []
            flight = self._launch(None)
            if waited_for and self._overlap:
                self._flight = flight
                self._learning.put_off(read=flight.step.plan.reads_vocabulary)
                return []
        # The last cycle is learned from while the device is busy with this one.
        if not self._overlap:
            self._learning.catch_up()
            return self._land(flight)
        reads = flight.step.plan.reads_vocabulary
        # The next cycle drafts from what is learned before its launch, which must not come late.
        left = max(self._landed_at, flight.launched) + self._cycle_seconds - perf_counter()
        first = self._learning.fits(left - flight.launch_seconds)
        if first:
            self._learning.teach_beside(read=reads)
        if flight.lasting:
            self._flight = self._launch(flight)
        late = flight.outcome.report.late  # from here on the device has a cycle to do
        if not first:
            self._learning.teach_beside(read=reads)
        self._learning.record_beside()
        return self._land(flight, late=late)

    def _launch(self, after: Flight | None) -> Flight:
        """Launches a cycle of all running requests, behind the one that is under way."""
        began = perf_counter()
        states = tuple(self.scheduler.running)
        plan = self._controller.choose(len(states))
        head, wanted = self._head_of(plan), self._observer.wanted
        step = self.runner.step(states, plan, head, wanted, None if after is None else after.step)
        outcome = self.runner.launch(step, head)
        features = None
        if outcome.features is not None and self._observer.records(states):
            features = fetch(outcome.features[: len(states)])
        version = self._adapter_version
        return Flight(states, step, outcome, features, version, began, launched=perf_counter())

    def _land(self, flight: Flight, *, late: bool = False) -> list[StepOutput]:
        """Waits for a cycle and takes in its outcome; `late`: the host has kept the device waiting."""
        plan = flight.step.plan
        self.stats.adapter_version = flight.adapter_version
        arrived = perf_counter()
        report = self.runner.finish(flight.step, flight.outcome, flight.states)
        self._learning.spare.waited(perf_counter() - arrived, late=late)
        # One that ended while this was under way is in it still, but emits no more.
        live = [(row, state) for row, state in enumerate(flight.states) if state.running]
        emissions = [
            self._emit(state, row, min(plan.depth, state.remaining - 1), report) for row, state in live
        ]
        self._observer.note(report, emissions, flight.features)
        self.stats.count_cycle(plan.name)
        for emission in emissions:
            self._count_draft(emission, plan, report)
        self._time(flight, emissions)
        return [_output(emission, report) for emission in emissions]

    def _time(self, flight: Flight, emissions: list[Emission]) -> None:
        """A cycle takes from the end of the one before it, or from its own launch, to its end."""
        landed = perf_counter()
        began = max(flight.began, self._landed_at)
        launched = max(flight.launched, began)
        self.stats.draft_seconds += launched - began
        self.stats.verify_seconds += landed - launched
        self._landed_at, self._cycle_seconds = landed, landed - began
        if self._watched:  # marks take time of their own: nothing is concluded from such a cycle
            return
        depths = [emission.drafted for emission in emissions]
        accepted = [emission.accepted for emission in emissions]
        plan, rows = flight.step.plan, len(flight.states)
        self._controller.observe(plan, rows, landed - began, depths, accepted)
        if self._vocabulary is not None and not plan.full_head:
            self._vocabulary.timed(landed - began, plan.depth, rows)

    def _emit(self, state: RequestState, row: int, drafted: int, report: Report) -> Emission:
        """Takes in a row's tokens; the request may end with them."""
        accepted = report.accepted[row]
        kept = state.accept(report.tokens[row][: accepted + 1], self._target.eos_ids)
        self.stats.emitted_tokens += len(kept)
        self.stats.requests_finished += state.finish is not None
        return Emission(state, row, kept, drafted, accepted, last=state.finish is not None)

    def _count_draft(self, emission: Emission, plan: DraftPlan, report: Report) -> None:
        if not emission.drafted:
            return
        self.stats.count_draft(emission.drafted, emission.accepted, plan.nodes)
        if plan.reads_vocabulary:  # else drafts say nothing of the active rows
            kept = len(emission.tokens)
            self.stats.coverable_tokens += kept
            self.stats.covered_tokens += sum(report.covered(emission.row, kept))

    def _drop_cancelled(self) -> list[StepOutput]:
        """Ends cancelled requests wherever they are; running ones free their slot in this step."""
        gone = self.scheduler.drop_cancelled()
        if not gone:
            return []
        for state in gone:
            self._observer.ended(state)
        self.stats.requests_cancelled += len(gone)
        return [StepOutput(state.request.id, (), finish_reason="cancelled") for state in gone]

    def _head_of(self, plan: DraftPlan) -> HeadView:
        # Tokens are held against the active rows even where drafts are not: so traces say of all alike.
        return replace(self._full_head, active=self._head().active) if plan.full_head else self._head()

    def _prunes(self) -> bool:
        """Whether the vocabulary's head is another than the full one."""
        head = self._head()
        return not head.plain or head.rows.shape[0] < self._full_head.rows.shape[0]

    def _head(self) -> HeadView:
        return self._full_head if self._vocabulary is None else self._vocabulary.head()


def _output(emission: Emission, report: Report) -> StepOutput:
    state, drafted = emission.state, emission.drafted
    first = drafted > 0 and report.first[emission.row]
    asked = state.request.logprobs
    scores = () if asked is None else report.scores(emission.row, emission.tokens, asked)
    return StepOutput(
        state.request.id,
        tuple(emission.tokens),
        drafted,
        emission.accepted,
        state.finish,
        first,
        scores,
        tuple(report.covered(emission.row, len(emission.tokens))),
    )
