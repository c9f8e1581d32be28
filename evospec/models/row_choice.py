"""Which variant of a drafter's weights each row of a pass goes through."""

from __future__ import annotations

import torch
from torch import Tensor


class RowChoice:
    """All tokens of a row go through the variant that it chose.

    What follows from the choices is found when it is first asked for, and kept: so make it anew where they
    may have changed, and inside whatever is captured.

    Attributes:
        variants: int64 [rows].
    """

    __slots__ = ("_groups", "_order", "variants")

    def __init__(self, variants: Tensor) -> None:
        self.variants = variants
        self._order: Tensor | None = None
        self._groups: list[tuple[int, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.variants)

    @property
    def order(self) -> Tensor:
        """Rows by variant, int64 [rows]."""
        if self._order is None:
            self._order = self.variants.argsort()
        return self._order

    @property
    def groups(self) -> list[tuple[int, Tensor]]:
        """Variants that were chosen, and the rows that chose them; the host waits for them."""
        if self._groups is None:
            chosen = sorted(set(self.variants.tolist()))
            self._groups = [(variant, torch.nonzero(self.variants == variant)[:, 0]) for variant in chosen]
        return self._groups
