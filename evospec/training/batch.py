"""A batch of documents as tensors, padded so that every root can be unrolled to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.training.corpus import Document


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents side by side, and the roots whose drafts are learnt.

    Position s of a document is a root when the drafter would be asked there in serving:
    token s + 1 belongs to the answer. Prompts are context only: their pairs are attended to
    but nothing is drafted in them.

    Attributes:
        tokens: ids [rows, width + steps], padded with 0.
        lengths: tokens of each document [rows].
        roots: where the roots stand, as indices into [rows * width], row by row [roots].
        decided: where the target decides each root's first draft token (position s + 1),
            as indices into [rows * (width + steps)] [roots]; step j adds j.
        observed: whether the document has the token that step j predicts, number s + 2 + j,
            bool [steps, roots]. Step 0 always is.
        roots_per_row: on the host.
    """

    tokens: Tensor
    lengths: Tensor
    roots: Tensor
    decided: Tensor
    observed: Tensor
    roots_per_row: tuple[int, ...]

    @classmethod
    def of(cls, documents: Sequence[Document], steps: int, longest: int, device: torch.device) -> Batch:
        """Cuts documents to `longest` tokens and pads them."""
        lengths = np.asarray([min(len(document.tokens), longest) for document in documents])
        width = int(lengths.max())
        total = width + steps
        tokens = np.zeros((len(documents), total), dtype=np.int64)
        places, rows, ends = [], [], []
        for row, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            tokens[row, :length] = document.tokens[:length]
            here = np.arange(max(document.answer - 1, 0), max(length - 2, 0))
            places.append(here)
            rows.append(np.full(len(here), row))
            ends.append(np.full(len(here), length))
        place, row_of, end = (np.concatenate(parts) for parts in (places, rows, ends))
        observed = place + 2 + np.arange(steps)[:, None] < end
        return cls(
            tokens=torch.from_numpy(tokens).to(device),
            lengths=torch.from_numpy(lengths).to(device),
            roots=torch.from_numpy(row_of * width + place).to(device),
            decided=torch.from_numpy(row_of * total + place + 1).to(device),
            observed=torch.from_numpy(observed).to(device),
            roots_per_row=tuple(len(here) for here in places),
        )

    @property
    def steps(self) -> int:
        return self.observed.shape[0]

    @property
    def width(self) -> int:
        return self.tokens.shape[1] - self.steps
