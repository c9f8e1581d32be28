"""What a cycle tells the host: packed into one tensor on the device, and read from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.decoding.best import BestTokens
from evospec.decoding.verify import Verdict
from evospec.engine.token_scores import ScoreColumns, TokenScore


@dataclass(frozen=True, slots=True)
class Wanted:
    """What learners want to know of each place that decided a token; nothing else is computed.

    Attributes:
        ranked: the target's best tokens, so many of them.
        traced: so many come with their log-probabilities at temperature 1.
        drafted: whether the draft tokens are wanted, accepted or not.
    """

    ranked: int = 0
    traced: int = 0
    drafted: bool = False

    @property
    def best(self) -> int:
        return max(self.ranked, self.traced)

    @property
    def unranked(self) -> Wanted:
        """Of cycles whose drafts, if any, don't depend on the active rows: these need no better tokens then,
        and where they don't pay, nothing may make decoding slower."""
        return Wanted(traced=self.traced)


NOTHING = Wanted()


@dataclass(frozen=True, slots=True)
class ReportLayout:
    """Columns of a report: accepted, tokens, first node of a tree, covered, best tokens, log-probabilities,
    draft tokens, scores, choice.

    Attributes:
        places: tokens that a row emits at most.
        nodes: draft tokens of a row.
        tree: whether a tree was drafted, which says apart whether its best first guess stood.
        covered: whether tokens are held against the active rows.
        chosen: whether it says what rows draft with, see `BatchState.choice`.
        alternatives: best tokens of each place that come with its log-probability; None: no request asks.
    """

    places: int
    nodes: int
    tree: bool
    covered: bool
    wanted: Wanted
    chosen: bool = False
    alternatives: int | None = None

    @property
    def columns(self) -> int:
        per_place = 1 + self.covered + self.wanted.best + self.wanted.traced
        rest = self.wanted.drafted * self.nodes + (self.scores.count if self.scores else 0) + self.chosen
        return 1 + self.tree + self.places * per_place + rest

    @property
    def scores(self) -> ScoreColumns | None:
        """Columns of what requests want to see of their tokens; None when none asks."""
        return None if self.alternatives is None else ScoreColumns(self.places, self.alternatives)

    @property
    def best(self) -> int:
        """Best tokens that it is made of."""
        return max(self.wanted.best, self.alternatives or 0)

    @property
    def totals(self) -> bool:
        """Whether it is made of log-probabilities."""
        return self.wanted.traced > 0 or self.alternatives is not None

    def pack(
        self,
        verdict: Verdict,
        best: BestTokens,
        active: Tensor | None,
        drafts: Tensor,
        choice: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        """A batch's report on its device, int64 [rows, columns].

        Args:
            best: of the places that decided the tokens, as many as `best` says, and `totals` if it does.
            active: see `HeadView`.
            drafts: draft tokens [rows, nodes].
            choice: see `BatchState` [rows].
            logits: of all places of the pass, where scores are wanted [rows, nodes + 1, vocab].
        """
        parts = [verdict.accepted[:, None], verdict.tokens]
        if verdict.places is not None:
            parts.append(verdict.places[:, 1:2])
        if active is not None:
            parts.append(active[verdict.tokens])
        if self.wanted.best:
            parts.append(best.ids[..., : self.wanted.best].flatten(1))
        if self.wanted.traced and best.totals is not None:
            logprobs = best.scores[..., : self.wanted.traced] - best.totals[..., None]
            parts.append(logprobs.double().view(torch.int64).flatten(1))
        if self.wanted.drafted:
            parts.append(drafts)
        if self.scores is not None and logits is not None:
            parts += self.scores.pack(logits, verdict, best)
        if self.chosen and choice is not None:
            parts.append(choice[:, None])
        return torch.cat(parts, dim=1)

    def read(self, numbers: np.ndarray) -> Report:
        """A report on the host, int64 [rows, columns]; keeps what it is given."""
        last = 1 + self.places
        heads: list[list[int]] = numbers[:, : last + self.tree].tolist()
        accepted = [head[0] for head in heads]
        # A tree bears its best guess for the first token at place 1.
        first = [head[last] == 1 for head in heads] if self.tree else [count > 0 for count in accepted]
        return Report(accepted, [head[1:last] for head in heads], first, self, numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """A batch's outcome on the host, per row.

    Attributes:
        accepted: accepted draft tokens.
        tokens: the emitted ones, then padding [places] each.
        first: whether the drafter's best guess for the first token was accepted.
    """

    accepted: list[int]
    tokens: list[list[int]]
    first: list[bool]
    _layout: ReportLayout
    _numbers: np.ndarray

    @property
    def wanted(self) -> Wanted:
        """What it holds for learners."""
        return self._layout.wanted

    def covered(self, row: int, count: int) -> list[bool]:
        """Whether each of a row's first tokens was among the active rows [count]."""
        if not self._layout.covered:
            return [True] * count
        start = 1 + self._layout.places + self._layout.tree
        return [flag > 0 for flag in self._numbers[row, start : start + count].tolist()]

    def missed(self) -> np.ndarray:
        """Whether tokens were outside the active rows, bool [rows, places]."""
        places = self._layout.places
        if not self._layout.covered:
            return np.zeros((len(self._numbers), places), dtype=bool)
        start = 1 + places + self._layout.tree
        missed: np.ndarray = self._numbers[:, start : start + places] == 0
        return missed

    def best(self) -> np.ndarray:
        """The target's best tokens, best first, int64 [rows, places, k]."""
        shape = (len(self._numbers), self._layout.places, self._layout.wanted.best)
        start = self._best_start
        return self._numbers[:, start : start + shape[1] * shape[2]].reshape(shape)

    def logprobs(self) -> np.ndarray:
        """Log-probabilities of the first of them, float32 [rows, places, traced]."""
        shape = (len(self._numbers), self._layout.places, self._layout.wanted.traced)
        start = self._best_start + shape[1] * self._layout.wanted.best
        bits = np.ascontiguousarray(self._numbers[:, start : start + shape[1] * shape[2]])
        return bits.view(np.float64).reshape(shape).astype(np.float32)

    def drafts(self) -> np.ndarray:
        """Draft tokens, int64 [rows, nodes]."""
        last = self._scores_start
        return self._numbers[:, last - self._layout.nodes : last]

    def scores(self, row: int, tokens: list[int], alternatives: int) -> tuple[TokenScore, ...]:
        """Log-probabilities of a row's first tokens, those that it kept.

        Args:
            alternatives: so many of each place's best tokens are wanted.
        """
        columns = self._layout.scores
        if columns is None:
            raise ValueError("nobody asked for log-probabilities")
        start = self._scores_start
        return columns.read(self._numbers[row, start : start + columns.count], tokens, alternatives)

    def choice(self, row: int) -> int | None:
        """What a row drafts with; None where it was not asked."""
        return int(self._numbers[row, -1]) if self._layout.chosen else None

    @property
    def _scores_start(self) -> int:
        layout = self._layout
        return layout.columns - layout.chosen - (layout.scores.count if layout.scores else 0)

    @property
    def _best_start(self) -> int:
        layout = self._layout
        return 1 + layout.tree + layout.places * (1 + layout.covered)
