"""Runs the models over the slot caches. A cycle is tensors only: nothing in it waits for the host.

Knows nothing of scheduling, vocabularies or text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.decoding.draft import Draft
from evospec.decoding.sampling import SamplingBatch
from evospec.decoding.tree import TreeDrafter
from evospec.decoding.verify import verify
from evospec.engine.batch_state import BatchState
from evospec.engine.passes import Prompted, Step, Verified
from evospec.engine.plan import DraftPlan
from evospec.engine.scheduler import SlotMove
from evospec.engine.state import RequestState
from evospec.models.draft_body import DraftBody
from evospec.models.drafter import Drafter
from evospec.models.graphs import Graphs, round_span
from evospec.models.kv_cache import KVCache, Tree, Window
from evospec.models.target import Target
from evospec.stopwatch import NO_STOPWATCH, Stopwatch
from evospec.vocab.active import HeadView

# Pairs that may wait for the drafter while decoding is plain: written many at once, they cost little.
_PENDING = 16
_BATCHES = (1, 2, 4, 8)  # rows of captured graphs; above, multiples of 8


class Runner:
    """Target, drafter, their caches, and the state of every slot."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        slots: int,
        max_length: int,
        plans: Sequence[DraftPlan],
        *,
        draws: bool,
    ) -> None:
        self.target = target
        self.device = target.device
        self._on_gpu = self.device.type == "cuda"
        self._draws = draws
        self._stopwatch: Stopwatch = NO_STOPWATCH
        self._pending_width = _PENDING + max(plan.depth for plan in plans) + 1
        # Whatever is written past the last token that is kept must find room, and so must what
        # rows do that hold no request: from `parked` on, nothing is ever read for a request.
        scratch = max(self._pending_width, *(max(plan.nodes, plan.scratch) for plan in plans)) + 1
        self._parked = max_length + scratch
        positions = self._parked + scratch
        self._cache = target.new_cache(slots, positions)
        self._chain: ChainDrafter | None = None
        self._draft_cache: KVCache | None = None
        features = 0
        if drafter is not None:
            tables = drafter.tables(target.tables)
            body = DraftBody(drafter)
            self._chain, self._tree = ChainDrafter(body, tables), TreeDrafter(body, tables)
            self._draft_cache = drafter.new_cache(slots, positions)
            features = drafter.config.feature_size
        self.state = BatchState(slots, self._pending_width, features, target.dtype, self.device)
        self.park(0, slots)
        self._drafts: Graphs[Draft] = Graphs(self.device)
        self._verifications: Graphs[Verified] = Graphs(self.device)

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return self._drafts.captures + self._verifications.captures

    def watch(self, stopwatch: Stopwatch) -> None:
        """Times the parts of cycles from now on; graphs are captured anew, with its marks in them."""
        self._stopwatch = stopwatch
        if self._chain is not None:
            self._chain.body.stopwatch = stopwatch
        self._drafts, self._verifications = Graphs(self.device), Graphs(self.device)

    def refresh(self) -> None:
        """Takes over what was written into the drafter's weights."""
        if self._chain is not None:
            self._chain.body.refresh()

    # --- prompts ---

    @torch.inference_mode()
    def prefill(self, state: RequestState, chunk: int) -> Prompted | None:
        """Processes up to `chunk` prompt tokens; on the last ones also decides the first token.

        Returns:
            The decision (one row, no draft) once the prompt is complete, else None.
        """
        start = state.prefilled
        stop = min(start + chunk, state.prompt_length)
        window = Window.of([start], stop - start, self.device, first_slot=state.slot)
        tokens = torch.tensor([state.tokens[start:stop]], device=self.device)
        output = self.target.forward(tokens, window, self._cache)
        state.prefilled = stop
        complete = stop == state.prompt_length
        if output.features is not None:
            self._absorb_prompt(state, output.features[:, : -1 if complete else None], start)
        if not complete:
            return None
        hidden, features = output.hidden[:, -1:], output.features
        last = None if features is None else features[:, -1:]
        decided = self._decide_first(state, hidden, last)
        return Prompted(decided, output.hidden[0], None if features is None else features[0])

    def _decide_first(self, state: RequestState, hidden: Tensor, features: Tensor | None) -> Verified:
        """The token after a prompt, from its last position [1, 1, n]; the slot's state begins there."""
        params, position = state.request.sampling, state.prompt_length
        self.state.set_sampling(state.slot, params)
        sampling = self.state.sampling(
            state.slot, 1, any_sampled=not params.greedy, truncated=params.truncates
        )
        logits = self.target.logits(hidden)
        verdict = verify(
            Draft.empty(1, self.device), logits, sampling, torch.tensor([position], device=self.device)
        )
        pending = features[0, 0] if features is not None and self._chain is not None else None
        self.state.start(state.slot, position, params.max_tokens, verdict.tokens[0, 0], pending)
        state.pending = 1
        return Verified(verdict, logits, hidden, features)

    def _absorb_prompt(self, state: RequestState, features: Tensor, start: int) -> None:
        """Writes the chunk's pairs to the drafter; the pair of the token not yet known stays pending."""
        width = features.shape[1]
        if self._chain is None or self._draft_cache is None or not width:
            return
        tokens = torch.tensor([state.tokens[start + 1 : start + 1 + width]], device=self.device)
        window = Window.of([start], width, self.device, first_slot=state.slot)
        self._chain.absorb(features, tokens, window, self._draft_cache)

    # --- cycles ---

    def step(self, states: Sequence[RequestState], plan: DraftPlan, head: HeadView) -> Step:
        """What the next cycle of these requests looks like."""
        rows, pairs = len(states), self._pairs(states, plan)
        span = max(state.cached for state in states) + max(plan.nodes, plan.scratch, pairs) + 1
        if self._on_gpu:
            span = round_span(span, self._cache.positions)
            rows = next((size for size in _BATCHES if size >= rows), -(-rows // 8) * 8)
            rows = min(rows, self._cache.slots)
        params = [state.request.sampling for state in states]
        any_sampled = any(not each.greedy for each in params)
        return Step(
            rows=rows,
            plan=plan,
            span=span,
            pairs=pairs,
            head_rows=head.rows.shape[0],
            any_sampled=any_sampled,
            truncated=any(each.truncates for each in params),
            draws=self._draws and any_sampled and plan.tree is None,
        )

    def _pairs(self, states: Sequence[RequestState], plan: DraftPlan) -> int:
        waiting = max(state.pending for state in states)
        if self._chain is None or (plan.depth == 0 and waiting < _PENDING):
            return 0
        if not self._on_gpu:
            return waiting
        return plan.depth + 1 if waiting <= plan.depth + 1 else self._pending_width

    @torch.inference_mode()
    def draft(self, step: Step, head: HeadView) -> Draft:
        """Catches the drafter up with what was confirmed, then drafts."""
        draft = self._drafts.run(step, lambda: self._draft(step, head))
        self._stopwatch.mark("host")
        return draft

    def _draft(self, step: Step, head: HeadView) -> Draft:
        nothing = Draft.empty(step.rows, self.device)
        if not step.pairs or self._chain is None or self._draft_cache is None:
            return nothing
        self._stopwatch.mark("draft_layer")
        hidden = self._absorb(self._chain, self._draft_cache, step)
        if not step.plan.depth:
            return nothing
        root = DraftRoot(
            hidden=hidden,
            starts=self.state.cached[: step.rows],
            lengths=self.state.lengths(step.rows, step.plan.depth),
            drawn=self.state.drawn[: step.rows],
            longest_context=step.span - step.plan.scratch - 1,
        )
        if step.plan.tree is not None:
            return self._tree.draft(root, step.plan.tree, head, self._draft_cache)
        drawing = self._sampling(step) if step.draws else None
        return self._chain.draft(root, step.plan.depth, head, self._draft_cache, drawing)

    def _absorb(self, chain: ChainDrafter, cache: KVCache, step: Step) -> Tensor:
        """Writes pending pairs; returns the output of each row's last one [rows, 1, hidden].

        Rows with fewer pairs write padding past them; drafting overwrites it.
        """
        state, width = self.state, step.pairs
        pending = state.pending[: step.rows]
        hidden = chain.absorb(
            state.pending_features[: step.rows, :width],
            state.pending_tokens[: step.rows, :width],
            Window(0, state.cached[: step.rows] - pending, width, step.span),
            cache,
        )  # [rows, width, hidden]
        last = (pending - 1).clamp(min=0)
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))

    @torch.inference_mode()
    def verify(self, step: Step, draft: Draft) -> Verified:
        """One target pass over each row's last token and its draft, and the state after it."""
        return self._verifications.run(step, lambda: self._verify(step, draft), state=self.state.advancing)

    def _verify(self, step: Step, draft: Draft) -> Verified:
        self._stopwatch.mark("target_layers")
        state, rows = self.state, step.rows
        starts = state.cached[:rows].clone()
        tokens = torch.cat((state.last[:rows, None], draft.tokens), dim=1)  # [rows, nodes + 1]
        tree = None if draft.tree is None else Tree(draft.tree.depths, draft.tree.ancestors)
        window = Window(0, starts, tokens.shape[1], step.span, tree=tree)
        output = self.target.forward(tokens, window, self._cache)
        self._stopwatch.mark("target_head")
        logits = self.target.logits(output.hidden)
        verdict = verify(draft, logits, self._sampling(step), starts + 1)
        hidden, features = output.hidden, output.features
        if verdict.places is not None:
            self._cache.keep_path(starts, verdict.places)
            logits, hidden = _at(logits, verdict.places), _at(hidden, verdict.places)
            features = None if features is None else _at(features, verdict.places)
        kept = torch.zeros_like(starts) if step.pairs else state.pending[:rows].clone()
        drawn = step.plan.depth if step.draws else 0
        state.advance(verdict, features if self._chain is not None else None, kept, drawn)
        self._stopwatch.mark("host")
        return Verified(verdict, logits, hidden, features)

    def _sampling(self, step: Step) -> SamplingBatch:
        return self.state.sampling(0, step.rows, any_sampled=step.any_sampled, truncated=step.truncated)

    def confirm(self, states: Sequence[RequestState], step: Step, emitted: Sequence[int]) -> None:
        """Keeps the host's count of pending pairs in step with the device's."""
        for state, count in zip(states, emitted, strict=True):
            state.pending = count + (0 if step.pairs else state.pending)

    def move(self, move: SlotMove) -> None:
        """Copies a request's caches and state to another slot."""
        state = move.state
        self.copy(move.source, move.target, state.cached if state.emitted else state.prefilled)
        self.state.move(move.source, move.target)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a slot's caches."""
        if source == target:
            return
        self._cache.move(source, target, length)
        if self._draft_cache is not None:
            self._draft_cache.move(source, target, length)

    def park(self, first: int, last: int) -> None:
        """Slots [first, last) hold no running request: what they do in cycles must touch nobody's keys."""
        self.state.cached[first:last] = self._parked
        self.state.pending[first:last] = 0
        self.state.remaining[first:last] = 0


def _at(states: Tensor, places: Tensor) -> Tensor:
    """states [rows, width, n] at places [rows, depth + 1]."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
