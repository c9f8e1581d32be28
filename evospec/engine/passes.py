"""What goes into a pass of the runner, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from evospec.decoding.sampling import SamplingBatch
from evospec.engine.batch_state import BatchState
from evospec.engine.host_copy import Fetched, SentReport
from evospec.engine.plan import DraftPlan
from evospec.engine.report import Report, ReportLayout


@dataclass(frozen=True, slots=True)
class Prompted:
    """A prompt's last chunk, and the decision on the first token on its way to the host.

    Attributes:
        sent: a report of one row, without a draft [1, columns].
        hidden: [positions, hidden].
        features: [positions, taps * hidden]; None when nothing is tapped.
    """

    layout: ReportLayout
    sent: Fetched
    hidden: Tensor
    features: Tensor | None

    def report(self) -> Report:
        """Waits for it."""
        return self.layout.read(self.sent.tensor().numpy())


@dataclass(frozen=True, slots=True)
class Step:
    """What tells one cycle's kernels from another's.

    Attributes:
        rows: running requests, rounded up where graphs are captured.
        span: no cache position read lies beyond it.
        pairs: pending pairs per row that are written to the drafter's cache; 0 leaves them waiting.
        head_rows: rows that the drafter scores.
        draws: whether sampled rows' drafts are drawn from the drafter's distribution.
    """

    rows: int
    plan: DraftPlan
    span: int
    pairs: int
    head_rows: int
    any_sampled: bool
    truncated: bool
    draws: bool
    report: ReportLayout

    @property
    def verified(self) -> Step:
        """What of it matters to the target: how many pairs were written does not."""
        return replace(self, pairs=min(self.pairs, 1))

    @property
    def reach(self) -> int:
        """Tokens that each row emits, at most."""
        return self.plan.depth + 1


@dataclass(frozen=True, slots=True)
class Launched:
    """What a cycle yields once the device gets to it.

    Attributes:
        features: target features of the places that decided the tokens [rows, depth + 1, taps * hidden],
            valid until the next launch, in stream order; None when nothing is tapped.
    """

    report: SentReport
    features: Tensor | None


def sampling_of(state: BatchState, step: Step) -> SamplingBatch:
    """Sampling parameters of a cycle's rows, as views."""
    return state.sampling(0, step.rows, any_sampled=step.any_sampled, truncated=step.truncated)
