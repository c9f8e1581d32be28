"""Which documents of a corpus are trained on, and which are kept apart to measure with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evospec.training.corpus import Corpus

_HELD_OUT = 64
_PART = 4  # at most one of so many is held out
_ENOUGH = 16  # conversations written by the target, to measure on those alone


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Indices of documents. `on_policy`: whether all of `held_out` was written by the target."""

    training: np.ndarray
    held_out: np.ndarray
    on_policy: bool


def split_documents(corpus: Corpus) -> Split:
    """Holds out the conversations that the target wrote last: drafts are of its text in serving, and
    what it wrote later may build on what it wrote before. Without such, documents from all over."""
    own = corpus.on_policy()
    if own.stop - own.start >= _ENOUGH:
        held_out = np.arange(own.stop - min(_HELD_OUT, (own.stop - own.start) // _PART), own.stop)
    else:
        count = min(_HELD_OUT, len(corpus) // _PART)
        held_out = np.linspace(0, len(corpus) - 1, count).round().astype(np.int64)
    training = np.setdiff1d(np.arange(len(corpus)), held_out)
    return Split(training, held_out, own.stop - own.start >= _ENOUGH)
