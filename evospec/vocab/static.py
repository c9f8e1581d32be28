"""Vocabularies that never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from evospec.engine.request import Request
from evospec.vocab.active import ActiveSlot
from evospec.vocab.head_rows import HeadView
from evospec.vocab.protocol import Ranked, Wishes
from evospec.vocab.successor_table import SuccessorTables


class StaticVocabulary:
    """All rows of a head, or a fixed list of them.

    Two published policies are such lists, and differ in where their frequencies come from:

    FR-Spec (Zhao et al., 2502.14856) keeps the k most frequent tokens of a general corpus
    (SlimPajama there, k = 32,768). `fr-spec:K:FILE` counts the tokens of a corpus file; `fr-spec:K`
    takes the ranks that the drafter brings, which were counted in text of the target's own: such a list
    is at least as good on the target's output as one from foreign text.

    VocabTrim (Goel et al., 2506.22694) keeps the k most frequent tokens of text that the
    target generated for calibration, which is what the drafter's ranks are: `vocabtrim:K`.

    In both, end-of-sequence and special tokens are kept as well.
    """

    def __init__(self, head: HeadView, vocab_size: int) -> None:
        self._head = head
        if head.ids is not None:
            active = torch.zeros(vocab_size, dtype=torch.int64, device=head.rows.device)
            active[head.ids] = 1
            self._head = replace(head, active=active)

    @property
    def wishes(self) -> Wishes:
        return Wishes()

    @property
    def epoch(self) -> int:
        return 0

    def head(self) -> HeadView:
        return self._head

    def slots(self) -> list[ActiveSlot]:
        return []

    def sources(self) -> dict[str, int]:
        return {}

    def admit(self, request: Request) -> None:
        pass

    def ranked(self, best: Ranked) -> None:
        pass

    def drafted(self, token_ids: Mapping[str, np.ndarray]) -> None:
        pass

    def emitted(self, token_ids: Mapping[str, Sequence[int]]) -> None:
        pass

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        pass

    def finish(self, request_id: str, *, learn: bool) -> None:
        pass

    def timed(self, seconds: float, steps: int, requests: int) -> None:
        pass

    def recore(self, ranks: np.ndarray | None) -> None:
        pass

    def adopt(self, successors: SuccessorTables) -> None:
        pass

    def study(self) -> None:
        pass

    def apply(self) -> int:
        return 0
