"""How long passes and cycles take, fitted to what was measured and scaled to other GPUs and models.

A pass over one token of one request takes

    layers * launch + bytes / bandwidth

with the bytes of all weights that it reads. `launch` and the share of the data sheet's bandwidth that is
reached follow from Qwen2.5-Coder-0.5B's times on two GPUs that differ in nothing but their memory. Each
further request adds `request` (its attention, sampling and bookkeeping, by layers), and each token of it
that is verified `2 * weights / compute`; both follow from cycles and passes with one and with 32 requests.
A cycle adds five draft steps (a fixed time, and the drafter's bytes) and what a verification does besides
the pass. Fixed times are taken to be the same on all GPUs. What is far from these models and cards is an
estimate: tensor cores are used better by larger models, and slower hosts launch more slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Final

from services.plan import figures
from services.plan.accelerators import H100, H200, Accelerator
from services.plan.shapes import BYTES, SHAPES, ModelShape

DRAFT: Final = 5  # tokens of a chain
_MANY: Final = 32
_FULL: Final = 8  # requests from which the share that whole turns reach stays the same
_REFERENCE: Final = SHAPES["qwen2.5-coder-0.5b"]
_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class Fit:
    """What the measured times come to, in ms; see this module's text.

    Attributes:
        bandwidth_share: of the data sheet's.
        compute_share: of the data sheet's, where the tokens of a verification are.
    """

    launch: float
    bandwidth_share: float
    request: float
    compute_share: float
    draft_step: float
    verification: float


def _fit() -> Fit:
    read_gb = BYTES * _REFERENCE.pass_parameters / 1e9
    slow, fast = (1 / (one.bandwidth_tb_s * figures.COPY_SHARE.value) for one in (H100, H200))
    effective_gb = (figures.PLAIN_H100.value - figures.PLAIN_H200.value) / (slow - fast)
    share = figures.COPY_SHARE.value * read_gb / effective_gb
    launch = (figures.PLAIN_H200.value - effective_gb * fast) / _REFERENCE.layers
    plain = (figures.PLAIN_32.value - figures.PLAIN_H200.value) / (_MANY - 1)
    cycle = (figures.CYCLE_32.value - figures.CYCLE_1.value) / (_MANY - 1)
    token = (cycle - plain) / DRAFT
    flops = 2 * _REFERENCE.pass_parameters / 1e12
    drafted_gb = BYTES * (_REFERENCE.drafter_parameters + _ROWS * _REFERENCE.hidden) / 1e9
    reading = drafted_gb / (H200.bandwidth_tb_s * share)
    return Fit(
        launch=launch,
        bandwidth_share=share,
        request=(plain - token) / _REFERENCE.layers,
        compute_share=flops / (token / 1e3) / H200.tflops,
        draft_step=figures.DRAFT_1.value / DRAFT - reading,
        verification=figures.CYCLE_1.value - figures.PLAIN_H200.value - figures.DRAFT_1.value - DRAFT * token,
    )


FIT: Final = _fit()


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of one model on one GPU, in ms.

    Attributes:
        rows: of the head that the drafter scores.
    """

    shape: ModelShape
    gpu: Accelerator
    rows: int = _ROWS

    @property
    def token_ms(self) -> float:
        """What one more token in a pass takes."""
        return 2 * self.shape.pass_parameters / (self.gpu.tflops * FIT.compute_share * 1e12) * 1e3

    def plain_ms(self, batch: int) -> float:
        """A pass over one token of each request."""
        fixed = self.shape.layers * FIT.launch + self._reading_ms(self.shape.pass_parameters)
        return fixed + (batch - 1) * (self.shape.layers * FIT.request + self.token_ms)

    def cycle_ms(self, batch: int) -> float:
        """A cycle with a chain of five for each request."""
        drafted = self.shape.drafter_parameters + min(self.rows, self.shape.vocab) * self.shape.hidden
        draft = DRAFT * (FIT.draft_step + self._reading_ms(drafted))
        return self.plain_ms(batch) + draft + FIT.verification + DRAFT * batch * self.token_ms

    def prompt_ms(self, tokens: float) -> float:
        """A prompt between two cycles: short ones by what was measured, and the passes over long ones."""
        short = figures.PROMPT.value * self.plain_ms(1) / figures.PLAIN_H200.value
        return max(short, self.plain_ms(1) + tokens * self.token_ms)

    def requests_per_s(self, batch: int, prompt: float, answer: float, acceptance: float) -> float:
        """Most that a replica can answer with so many at once, before tracing takes its share.

        Args:
            acceptance: τ; where plain decoding is faster than drafting, that is what `drafting: auto` does.
        """
        cycles = answer * self.ms_per_step(batch, acceptance) / batch
        return turn_share(batch) * 1e3 / (cycles + self.prompt_ms(prompt))

    def ms_per_step(self, batch: int, acceptance: float) -> float:
        """Time a token of one request takes."""
        return min(self.cycle_ms(batch) / acceptance, self.plain_ms(batch))

    def drafts(self, batch: int, acceptance: float) -> bool:
        """Whether drafting pays."""
        return self.cycle_ms(batch) / acceptance < self.plain_ms(batch)

    def _reading_ms(self, parameters: int) -> float:
        return BYTES * parameters / (self.gpu.bandwidth_tb_s * FIT.bandwidth_share * 1e12) * 1e3


def turn_share(batch: int) -> float:
    """Share of what cycles and prompts promise that whole turns reach."""
    alone, together = figures.SHARE_ALONE.value, figures.SHARE_TOGETHER.value
    return alone + (together - alone) * min(log2(batch) / log2(_FULL), 1.0)
