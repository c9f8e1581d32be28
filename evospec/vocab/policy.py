"""Vocabulary policies: which rows of the head the drafter scores, and when that changes.

All policies speak one protocol, so that peers are compared inside one engine. The
engine tells a policy what happened; `apply` is the only place where rows change. It is
called while a cycle runs, and the change is enqueued behind that cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from evospec.config import VocabularyConfig
from evospec.errors import EvoSpecError
from evospec.models.tables import TokenTables
from evospec.vocab.active import ActiveRows
from evospec.vocab.core import core_tokens
from evospec.vocab.dynamic import DynamicVocabulary
from evospec.vocab.head_rows import HeadView


class VocabularyPolicy(Protocol):
    """What the engine reports to a policy, and what it reads from it."""

    @property
    def epoch(self) -> int:
        """Grows whenever rows changed; 0 for a vocabulary that never changes."""
        ...

    def head(self) -> HeadView: ...

    def admit(self, request_id: str, prompt_ids: Sequence[int]) -> None: ...

    def ranked(self, top_ids: np.ndarray) -> None:
        """The target's best tokens at some positions [positions, k], best first."""
        ...

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None: ...

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None: ...

    def finish(self, request_id: str) -> None: ...

    def apply(self) -> int:
        """Brings what was reported into the active rows, behind what the device does already.

        Returns:
            Number of rows written.
        """
        ...


class StaticVocabulary:
    """A head that never changes: all rows, or a fixed list of tokens.

    With the k most frequent tokens it is FR-Spec (Zhao et al., 2502.14856); with
    all of them it is the full vocabulary.
    """

    def __init__(self, head: HeadView, vocab_size: int) -> None:
        self._head = head
        if head.ids is not None:
            active = torch.zeros(vocab_size, dtype=torch.int64, device=head.rows.device)
            active[head.ids] = 1
            self._head = replace(head, active=active)

    @property
    def epoch(self) -> int:
        return 0

    def head(self) -> HeadView:
        return self._head

    def admit(self, request_id: str, prompt_ids: Sequence[int]) -> None:
        pass

    def ranked(self, top_ids: np.ndarray) -> None:
        pass

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None:
        pass

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        pass

    def finish(self, request_id: str) -> None:
        pass

    def apply(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class PolicyName:
    """A policy as written in configs: `kind` or `kind:rows`."""

    kind: str
    rows: int | None = None

    @classmethod
    def parse(cls, text: str) -> PolicyName:
        """Raises EvoSpecError naming what is known."""
        kind, _, rows = text.partition(":")
        if kind == "fr-spec" and rows.isdigit() and int(rows) > 0:
            return cls(kind, int(rows))
        if kind in ("full", "evospec") and not rows:
            return cls(kind)
        raise EvoSpecError(
            f"unknown vocabulary policy {text!r}: choose `evospec`, `full`, or `fr-spec:K` with K rows"
        )


def build_policy(
    config: VocabularyConfig,
    tables: TokenTables,
    core_ranks: np.ndarray,
    always: Sequence[int],
    max_batch: int,
) -> VocabularyPolicy:
    """The policy that `config.policy` names, over the head that the drafter uses.

    `always` are end-of-sequence and special tokens, active whatever happens (where the
    head has a row for them).
    """
    name = PolicyName.parse(config.policy)
    vocab = tables.vocab_size
    if name.kind == "full":
        return StaticVocabulary(HeadView(tables.head, tables.head_ids), vocab)
    if name.kind == "fr-spec" and name.rows is not None:
        return StaticVocabulary(_select(tables, head_core(tables, core_ranks, name.rows, always)), vocab)
    core = head_core(tables, core_ranks, config.core, always)
    rows = ActiveRows(tables, config.capacity, config.half_life)
    return DynamicVocabulary(rows, core, config, max_batch)


def head_core(tables: TokenTables, core_ranks: np.ndarray, size: int, always: Sequence[int]) -> np.ndarray:
    """The `size` most frequent tokens that have a head row, with those of `always` that do."""
    covered = None if tables.head_ids is None else tables.head_ids.cpu().numpy()
    return core_tokens(core_ranks, min(size, tables.head.shape[0]), tables.vocab_size, always, covered)


def _select(tables: TokenTables, token_ids: np.ndarray) -> HeadView:
    ids = torch.from_numpy(token_ids).to(tables.head.device)
    index = tables.head_index()
    return HeadView(tables.head.index_select(0, ids if index is None else index[ids]), ids)
