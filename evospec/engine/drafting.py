"""The drafter's half of a cycle, over a cache of its own."""

from __future__ import annotations

from torch import Tensor

from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.decoding.draft import Draft
from evospec.decoding.tree import TreeDrafter
from evospec.engine.batch_state import BatchState
from evospec.engine.passes import Step, sampling_of
from evospec.models.draft_body import DraftBody
from evospec.models.draft_stacks import DraftStacks
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import KVCache, Window
from evospec.models.row_choice import RowChoice
from evospec.models.tables import TokenTables
from evospec.stopwatch import Stopwatch
from evospec.vocab.head_rows import HeadView


class Drafting:
    """Writes confirmed pairs to the drafter's cache and drafts from there.

    Args:
        tables: the drafter's own, see `Drafter.tables`.
        variants: of the drafter's weights, see `DraftBody`.
    """

    __slots__ = ("_body", "_cache", "_chain", "_tree")

    def __init__(self, drafter: Drafter, tables: TokenTables, cache: KVCache, variants: int = 1) -> None:
        self._body, self._cache = DraftBody(drafter, variants=variants), cache
        self._chain, self._tree = ChainDrafter(self._body, tables), TreeDrafter(self._body, tables)

    @property
    def stacks(self) -> DraftStacks:
        """The weights that it drafts with."""
        return self._body.stacks

    def watch(self, stopwatch: Stopwatch) -> None:
        self._body.stopwatch = stopwatch

    def refresh(self) -> None:
        """Takes over what was written into the drafter's weights."""
        self._body.refresh()

    def absorb_prompt(
        self,
        tokens: Tensor,
        features: Tensor,
        window: Window,
        choice: Tensor,
        cache: KVCache | None = None,
    ) -> None:
        """Writes a prompt's pairs: tokens [1, n], features [1, n, taps * hidden].

        Args:
            choice: see `BatchState` [1].
            cache: None: the drafter's own.
        """
        own = self._cache if cache is None else cache
        self._chain.absorb(features, tokens, window, own, RowChoice(choice))

    def draft(self, state: BatchState, step: Step, head: HeadView) -> Draft | None:
        """Catches the drafter up with what was confirmed, then drafts; None when the plan is not to."""
        self._body.stopwatch.mark("draft_layer")
        choice = RowChoice(state.choice[: step.rows])
        hidden = self._absorb(state, step, choice)
        plan = step.plan
        if not plan.depth:
            return None
        root = DraftRoot(
            hidden=hidden,
            starts=state.cached[: step.rows],
            lengths=state.lengths(step.rows, plan.depth),
            drawn=state.drawn[: step.rows],
            longest_context=step.span - plan.scratch - 1,
            choice=choice,
        )
        if plan.tree is not None:
            return self._tree.draft(root, plan.tree, head, self._cache)
        drawing = sampling_of(state, step) if step.draws else None
        return self._chain.draft(root, plan.depth, head, self._cache, drawing)

    def _absorb(self, state: BatchState, step: Step, choice: RowChoice) -> Tensor:
        """Writes pending pairs; returns the output of each row's last one [rows, 1, hidden].

        Rows with fewer pairs write padding past them; drafting overwrites it.
        """
        width = step.pairs
        pending = state.pending[: step.rows]
        hidden = self._chain.absorb(
            state.pending_features[: step.rows, :width],
            state.pending_tokens[: step.rows, :width],
            Window(0, state.cached[: step.rows] - pending, width, step.span),
            self._cache,
            choice,
        )  # [rows, width, hidden]
        last = (pending - 1).clamp(min=0)
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))
