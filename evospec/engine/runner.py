"""Runs the models over the slot caches. A cycle is tensors only: nothing in it waits for the host.

Knows nothing of scheduling, vocabularies or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from evospec.decoding.best import best_tokens
from evospec.decoding.draft import Draft
from evospec.decoding.verify import verify
from evospec.engine.drafting import Drafting
from evospec.engine.host_copy import fetch
from evospec.engine.passes import Launched, Prompted, Step
from evospec.engine.plan import DraftPlan
from evospec.engine.prompts import PromptPasses
from evospec.engine.report import NOTHING, Report, ReportLayout, Wanted
from evospec.engine.settling import Settling, Verified
from evospec.engine.sizes import Sizes
from evospec.engine.slots import MOST_PENDING, RunnerSettings, Slots
from evospec.engine.state import RequestState
from evospec.engine.token_scores import MOST_ALTERNATIVES
from evospec.models.bank_places import BankPlaces
from evospec.models.drafter import Drafter
from evospec.models.graphs import Graphs
from evospec.models.kv_cache import Tree, Window
from evospec.models.target import Target
from evospec.stopwatch import NO_STOPWATCH, Stopwatch
from evospec.vocab.head_rows import HeadView

USUAL_LENGTH = 512  # tokens of context and answer of a short request


class Runner:
    """Target, drafter, their caches, and the state of every slot."""

    def __init__(self, target: Target, drafter: Drafter | None, settings: RunnerSettings) -> None:
        self.target = target
        self.device = target.device
        self.slots = Slots(target, drafter, settings)
        self._sizes = settings.sizes or Sizes.of(self.device)
        self._draws = settings.draws
        self._pending_width = settings.pending_width
        self._scratch = settings.scratch
        self._drafting: Drafting | None = None
        if drafter is not None and self.slots.draft_cache is not None:
            tables = drafter.tables(target.tables)
            variants = settings.adapters + 1
            self._drafting = Drafting(drafter, tables, self.slots.draft_cache, variants)
        self._prefill_chunk = settings.prefill_chunk
        self._prompts = PromptPasses(
            target, drafter, self._drafting, self.slots, self._sizes, settings.prefill_chunk
        )
        self._no_drafts: dict[int, Draft] = {}  # by rows: graphs hold on to them
        self._kept_drafts: dict[Step, Draft] = {}
        self._alternatives = min(MOST_ALTERNATIVES, target.vocab_size)
        self._settling = Settling.of(self.slots, settings, self._alternatives)
        self._stopwatch: Stopwatch = NO_STOPWATCH
        # One pool for all: drafts are copied out of it, and nothing else outlives the next launch.
        self._drafts: Graphs[Draft | None] = Graphs(self.device, beside=self._prompts.graphs)
        self._verifications: Graphs[Tensor | None] = Graphs(self.device, beside=self._prompts.graphs)
        self._unwatched = self._drafts, self._verifications

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return self._drafts.captures + self._verifications.captures + self._prompts.captures

    @property
    def bank(self) -> BankPlaces | None:
        """Room for adapters of kinds of traffic; None when there is none."""
        if self._drafting is None or self.slots.routes is None:
            return None
        return BankPlaces(self._drafting.stacks, self.slots.routes)

    def watch(self, stopwatch: Stopwatch) -> None:
        """Times the parts of cycles from now on, in graphs captured anew, with its marks in them;
        `NO_STOPWATCH` returns to those without marks."""
        self._stopwatch = stopwatch
        if self._drafting is not None:
            self._drafting.watch(stopwatch)
        self._drafts, self._verifications = self._unwatched
        if stopwatch is not NO_STOPWATCH:
            self._drafts, self._verifications = Graphs(self.device), Graphs(self.device)

    def refresh(self) -> None:
        """Takes over what was written into the drafter's weights."""
        if self._drafting is not None:
            self._drafting.refresh()

    # --- prompts ---

    def reuses_prefix(self, state: RequestState) -> bool:
        """Whether it pays to begin a prompt behind keys that another slot holds."""
        return not self._prompts.takes_whole(state.prompt_length)

    @torch.inference_mode()
    def prefill(
        self, state: RequestState, active: Tensor | None = None, wanted: Wanted = NOTHING
    ) -> Prompted | None:
        """Launches the next chunk of a prompt; with the last one also the decision on the first token.

        Args:
            active: see `HeadView`.

        Returns:
            None while more of the prompt is to come. Its states hold until the next launch, in stream order.
        """
        stop = min(state.prefilled + self._prefill_chunk, state.prompt_length)
        output = self._prompts.process(state, stop)
        if stop < state.prompt_length:
            return None
        features = None if output.features is None else output.features[0]
        chosen, covered = self.slots.routes is not None, active is not None
        layout = ReportLayout(
            1,
            nodes=0,
            tree=False,
            covered=covered,
            wanted=wanted,
            chosen=chosen,
            alternatives=self._alternatives_for([state]),
        )
        decided = self._decide_first(state, output.hidden[:, -1:], features, active, layout)
        return Prompted(layout, fetch(decided), output.hidden[0], features)

    def _decide_first(
        self,
        state: RequestState,
        hidden: Tensor,
        features: Tensor | None,
        active: Tensor | None,
        layout: ReportLayout,
    ) -> Tensor:
        """The token after a prompt, from its last position [1, 1, hidden], as a report [1, columns]; the
        slot's state begins there."""
        params, position = state.request.sampling, state.prompt_length
        self.slots.state.set_sampling(state.slot, params)
        sampling = self.slots.state.sampling(
            state.slot, 1, any_sampled=not params.greedy, truncated=params.truncates
        )
        scores = self.target.scores(hidden)
        best = best_tokens(scores, layout.best, totals=layout.totals)
        first = torch.full((1,), position, device=self.device)
        verdict = verify(self._no_draft(1), scores, sampling, first, best.choices)
        pending = features[-1] if features is not None and self._drafting is not None else None
        self.slots.state.start(state.slot, position, params.max_tokens, verdict.tokens[0, 0], pending)
        state.pending = 1
        choice = self.slots.state.choice[state.slot : state.slot + 1]
        return layout.pack(verdict, best, active, self._no_draft(1).tokens, choice, scores)

    # --- cycles ---

    def step(
        self,
        states: Sequence[RequestState],
        plan: DraftPlan,
        head: HeadView,
        wanted: Wanted = NOTHING,
        after: Step | None = None,
    ) -> Step:
        """What the next cycle of these requests looks like.

        Args:
            after: their cycle that is under way, whose outcome is not known yet.
        """
        pairs = self._pairs(states, plan, after)
        cached = max([state.cached for state in states]) + (after.reach if after is not None else 0)
        span = cached + max(plan.nodes, plan.scratch, pairs) + 1
        params = [state.request.sampling for state in states]
        any_sampled = not all(each.greedy for each in params)
        return Step(
            rows=self._sizes.rows(len(states), self.slots.count),
            plan=plan,
            span=self._sizes.span(span, self.slots.cache.positions),
            pairs=pairs,
            head_rows=head.rows.shape[0],
            any_sampled=any_sampled,
            truncated=any_sampled and any(each.truncates for each in params),
            draws=self._draws and any_sampled and plan.tree is None,
            report=self._layout(plan, head, wanted, self._alternatives_for(states)),
        )

    def _layout(
        self, plan: DraftPlan, head: HeadView, wanted: Wanted, alternatives: int | None = None
    ) -> ReportLayout:
        return ReportLayout(
            plan.depth + 1,
            nodes=plan.nodes,
            tree=plan.tree is not None,
            covered=head.active is not None,
            wanted=wanted if plan.reads_vocabulary else wanted.unranked,
            alternatives=alternatives,
        )

    def _alternatives_for(self, states: Sequence[RequestState]) -> int | None:
        asked = any(state.request.logprobs is not None for state in states)
        return self._alternatives if asked else None

    def _pairs(self, states: Sequence[RequestState], plan: DraftPlan, after: Step | None) -> int:
        waiting = max([state.pending for state in states])
        if after is not None:
            waiting = after.reach + (0 if after.pairs else waiting)
        if self._drafting is None or (plan.depth == 0 and waiting < MOST_PENDING):
            return 0
        return self._sizes.pairs(waiting, plan.depth + 1, self._pending_width)

    def prepare(
        self,
        plans: Sequence[DraftPlan],
        head_of: Callable[[DraftPlan], HeadView],
        wanted: Wanted,
        longest: int = USUAL_LENGTH,
    ) -> None:
        """Runs a cycle of every usual size over slots that hold no request, so that graphs are captured
        and kernels compiled before a request waits for them; where sizes are not rounded, nothing is.

        Sizes that are left out are captured when they occur: large batches, requests of more than
        `longest` tokens, and requests that are sampled.
        """
        if not self._sizes.rounded:
            return
        self._prompts.prepare()
        spans = self._sizes.usual_spans(longest + self._scratch, self.slots.cache.positions)
        for rows in self._sizes.usual_rows(self.slots.count):
            for plan in plans:
                if plan.least_rows > rows:
                    continue
                head = head_of(plan)
                for span, pairs in product(spans, self._usual_pairs(plan, among=len(plans))):
                    step = Step(
                        rows=rows,
                        plan=plan,
                        span=span,
                        pairs=pairs,
                        head_rows=head.rows.shape[0],
                        any_sampled=False,
                        truncated=False,
                        draws=False,
                        report=self._layout(plan, head, wanted),
                    )
                    self.launch(step, head).report.wait(rows, step.report.columns)

    def _usual_pairs(self, plan: DraftPlan, *, among: int) -> list[int]:
        """Pending pairs that cycles of a plan write, among so many plans: after one that leaves more of
        them than this one does, as many as can wait."""
        if self._drafting is None:
            return [0]
        usual = plan.depth + 1 if plan.depth else 0
        return [usual] if among == 1 else [usual, self._pending_width]

    @torch.inference_mode()
    def launch(self, step: Step, head: HeadView) -> Launched:
        """Drafts and verifies, behind whatever the device does; `finish` says what came of it."""
        draft = self._no_draft(step.rows)
        drafting = self._drafting
        if step.pairs and drafting is not None:
            drafted = self._drafts.run(step, partial(self._draft, drafting, step, head))
            draft = draft if drafted is None else drafted
        self._stopwatch.mark("host")
        features = self._verifications.run(
            step.verified, partial(self._verify, step, draft, head), self.slots.advancing
        )
        return Launched(self._settling.send(step.rows * step.report.columns), features)

    def finish(self, step: Step, launched: Launched, states: Sequence[RequestState]) -> Report:
        """Waits for the cycle of these requests; cycles are finished in the order of their launch."""
        report = step.report.read(launched.report.wait(len(states), step.report.columns))
        for state, accepted in zip(states, report.accepted, strict=True):
            # The host's count of pending pairs keeps step with the device's.
            state.pending = accepted + 1 + (0 if step.pairs else state.pending)
        return report

    def _draft(self, drafting: Drafting, step: Step, head: HeadView) -> Draft | None:
        draft = drafting.draft(self.slots.state, step, head)
        if draft is None or not (self._sizes.rounded or self._drafts.captures_them):
            return draft
        # Cycles that differ in what they catch up with share one graph of the target, which reads one place.
        if step.verified not in self._kept_drafts:
            self._kept_drafts[step.verified] = draft.clone()
        return draft.copied_to(self._kept_drafts[step.verified])

    def _verify(self, step: Step, draft: Draft, head: HeadView) -> Tensor | None:
        """One target pass over each row's last token and its draft, and the state after it."""
        self._stopwatch.mark("target_layers")
        state, rows = self.slots.state, step.rows
        starts = state.cached[:rows]  # until the end
        tokens = torch.cat((state.last[:rows, None], draft.tokens), dim=1)  # [rows, nodes + 1]
        tree = None if draft.tree is None else Tree(draft.tree.depths, draft.tree.ancestors)
        window = Window(0, starts, tokens.shape[1], step.span, tree=tree)
        output = self.target.forward(tokens, window, self.slots.cache)
        self._stopwatch.mark("target_head")
        scores = self.target.scores(output.hidden)
        features = self._settling.settle(Verified(step, draft, scores, output), head.active)
        self._stopwatch.mark("host")
        return features

    def _no_draft(self, rows: int) -> Draft:
        if rows not in self._no_drafts:
            self._no_drafts[rows] = Draft.empty(rows, self.device)
        return self._no_drafts[rows]
