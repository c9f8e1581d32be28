"""SpecVocab: a cheap preview of all rows picks those that are scored exactly, at every draft step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadView


@dataclass(frozen=True, slots=True)
class PreviewView(HeadView):
    """A full head of which a low-rank product chooses the rows to score.

    After SpecVocab (2602.13836): logits of all rows are previewed at a low rank, and the best are scored
    exactly. What differs here: the low rank is that of the head's truncated singular value
    decomposition, nothing is trained, and PyTorch's own kernels are used, which read the preview's
    logits twice.

    Attributes:
        down: states to the low rank [hidden, rank].
        up: low rank to logits [rows, rank].
        exact: rows scored exactly per state.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    exact: int = 0

    @property
    def count(self) -> int:
        return self.exact

    @property
    def plain(self) -> bool:
        return False

    def score(self, states: Tensor) -> Tensor:
        """Logits, float32 [..., rows], of states [..., hidden]; -inf for rows that were not chosen."""
        if self.down is None or self.up is None:
            raise ValueError("a preview needs both factors of the head")
        preview = (states @ self.down) @ self.up.T  # [..., rows]
        chosen = preview.topk(self.exact, dim=-1, sorted=False).indices  # [..., exact]
        exact = (self.rows[chosen] @ states[..., None]).squeeze(-1)
        unscored = torch.full(preview.shape, -torch.inf, device=states.device)
        return unscored.scatter_(-1, chosen, exact.float())

    @classmethod
    def of(cls, tables: TokenTables, rank: int, exact: int) -> PreviewView:
        """Decomposes the head of `tables`, which takes seconds.

        The best approximation W ~ U_r S_r V_r^T in least squares (Eckart and Young, 1936): states are
        projected by V_r, and U_r S_r are the low-rank rows.
        """
        head = tables.head
        rank, exact = min(rank, head.shape[1]), min(exact, head.shape[0])
        wide = head.float()
        # V_r from the small Gram matrix [hidden, hidden]: its largest eigenvalues are the last.
        basis = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -rank:]
        return cls(
            rows=head,
            ids=tables.head_ids,
            down=basis.to(head.dtype),
            up=(wide @ basis).to(head.dtype),
            exact=exact,
        )
