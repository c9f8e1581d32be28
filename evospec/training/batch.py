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
    """Token ids [rows, width + steps] and each document's length [rows]; roots are 0..width-1."""

    tokens: Tensor
    lengths: Tensor
    answers: Tensor
    steps: int

    @classmethod
    def of(cls, documents: Sequence[Document], steps: int, longest: int, device: torch.device) -> Batch:
        """Cuts documents to `longest` tokens and pads them with token 0."""
        lengths = [min(len(document.tokens), longest) for document in documents]
        tokens = np.zeros((len(documents), max(lengths) + steps), dtype=np.int64)
        for row, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            tokens[row, :length] = document.tokens[:length]
        return cls(
            tokens=torch.from_numpy(tokens).to(device),
            lengths=torch.tensor(lengths, device=device),
            answers=torch.tensor([document.answer for document in documents], device=device),
            steps=steps,
        )

    @property
    def width(self) -> int:
        return self.tokens.shape[1] - self.steps

    def observed(self) -> Tensor:
        """Whether step j of root s predicts a token that the document has, bool [steps, rows, width].

        That token is number s + 2 + j.
        """
        root = torch.arange(self.width, device=self.tokens.device)
        step = torch.arange(self.steps, device=self.tokens.device)[:, None, None]
        return root + 2 + step < self.lengths[:, None]

    def answered(self) -> Tensor:
        """Whether that token belongs to the answer, bool [steps, rows, width]."""
        root = torch.arange(self.width, device=self.tokens.device)
        step = torch.arange(self.steps, device=self.tokens.device)[:, None, None]
        return self.observed() & (root + 2 + step >= self.answers[:, None])
