"""What sizes cycles may have: where graphs are captured, few of each, so that few are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evospec.models.graphs import round_span

_NARROWEST_PROMPT = 32  # positions: shorter prompts take as long
_MOST_PREPARED = 32  # rows; a thousand slots would take minutes to prepare for


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rounds what tells one cycle's kernels from another's.

    Attributes:
        rounded: round up; False takes every size as it is, where nothing is captured.
    """

    rounded: bool

    @classmethod
    def of(cls, device: torch.device) -> Sizes:
        return cls(rounded=device.type == "cuda")

    def rows(self, running: int, slots: int) -> int:
        """Powers of two up to 8, then multiples of 8; never more than there are slots."""
        if not self.rounded:
            return running
        rows = 1 << (running - 1).bit_length() if running < 8 else -(-running // 8) * 8
        return min(rows, slots)

    def prompt_widths(self, longest: int) -> list[int]:
        """Widths, rising, that the beginnings of prompts are padded to; none where they are not."""
        if not self.rounded:
            return []
        widths = [min(_NARROWEST_PROMPT, longest)]
        while widths[-1] < longest:
            widths.append(min(2 * widths[-1], longest))
        return widths

    def usual_rows(self, slots: int) -> list[int]:
        """The numbers of rows that cycles are rounded to, as far as it pays to prepare for them."""
        return sorted({self.rows(running, slots) for running in range(1, min(slots, _MOST_PREPARED) + 1)})

    def usual_spans(self, longest: int, positions: int) -> list[int]:
        """The spans that requests of up to `longest` positions are rounded to."""
        spans = [self.span(1, positions)]
        while spans[-1] < min(longest, positions):
            spans.append(self.span(spans[-1] + 1, positions))
        return spans

    def span(self, span: int, positions: int) -> int:
        return round_span(span, positions) if self.rounded else span

    def pairs(self, waiting: int, usual: int, most: int) -> int:
        """Pending pairs per row that are written to the drafter's cache.

        Args:
            usual: as many as a cycle leaves; `most`: as many as can wait.
        """
        if not self.rounded:
            return waiting
        return usual if waiting <= usual else most
