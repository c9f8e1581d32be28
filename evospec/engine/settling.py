"""The end of a cycle: which draft tokens stand, what the host is told, and the state after it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evospec.decoding.best import BestTokens, best_tokens
from evospec.decoding.draft import Draft
from evospec.decoding.verify import verify
from evospec.engine.host_copy import ReportBuffer, SentReport
from evospec.engine.passes import Step, sampling_of
from evospec.engine.report import ReportLayout
from evospec.engine.slots import RunnerSettings, Slots
from evospec.models.target import TargetOutput


@dataclass(frozen=True, slots=True)
class Verified:
    """A draft, and the target's pass over each row's last token and it.

    Attributes:
        scores: logits of any floating type [rows, nodes + 1, vocab].
        output: of [rows, nodes + 1] tokens.
    """

    step: Step
    draft: Draft
    scores: Tensor
    output: TargetOutput

    @property
    def is_plain(self) -> bool:
        """Whether each row follows a chain to its end by the target's best tokens, and nobody asks for their
        log-probabilities: most cycles."""
        return self.draft.tree is None and not self.step.any_sampled and self.step.report.scores is None


class Settling:
    """Ends the cycles of a runner.

    Args:
        at_once: whether plain cycles end in one kernel; its outcome is the same, to the bit.
    """

    __slots__ = ("_at_once", "_reports", "_slots")

    def __init__(self, slots: Slots, reports: ReportBuffer, *, at_once: bool) -> None:
        self._slots, self._reports, self._at_once = slots, reports, at_once

    @classmethod
    def of(cls, slots: Slots, settings: RunnerSettings, alternatives: int) -> Settling:
        """Room for whatever cycles report.

        Args:
            alternatives: see `ReportLayout`, where they are asked for.
        """
        widest = ReportLayout(
            settings.places,
            nodes=max(plan.nodes for plan in settings.plans),
            tree=True,
            covered=True,
            wanted=settings.wanted,
            alternatives=alternatives,
        )
        device = slots.state.last.device
        reports = ReportBuffer(settings.slots * widest.columns, device)
        return cls(slots, reports, at_once=device.type == "cuda")

    def settle(self, cycle: Verified, active: Tensor | None) -> Tensor | None:
        """Decides, posts the report, and advances the state; may be captured.

        Args:
            active: see `HeadView`.

        Returns:
            Target features of the places that decided the tokens [rows, depth + 1, taps * hidden]; None when
            nothing is tapped.
        """
        layout = cycle.step.report
        best = best_tokens(cycle.scores, layout.best, totals=layout.totals)
        if self._at_once and cycle.is_plain:
            emitted = self._settle_at_once(cycle, best, active)
            self._advance_contexts(cycle.output.hidden, emitted)
            return cycle.output.features
        return self._settle_in_steps(cycle, best, active)

    def send(self, size: int) -> SentReport:
        """See `ReportBuffer`."""
        return self._reports.send(size)

    def _settle_at_once(self, cycle: Verified, best: BestTokens, active: Tensor | None) -> Tensor:
        """Returns the tokens that each row emits [rows]."""
        from evospec.kernels.settle import Reported, settle  # Triton comes with CUDA builds of PyTorch only

        step, layout = cycle.step, cycle.step.report
        reported = Reported(
            self._reports.room(step.rows, layout.columns),
            active,
            best=layout.wanted.best,
            traced=layout.wanted.traced,
            drafted=layout.wanted.drafted,
            chosen=layout.chosen,
        )
        features = self._kept(cycle.output.features)
        return settle(cycle.draft, best, features, self._slots.state, reported, absorbed=step.pairs > 0)

    def _settle_in_steps(self, cycle: Verified, best: BestTokens, active: Tensor | None) -> Tensor | None:
        step, draft, state = cycle.step, cycle.draft, self._slots.state
        starts = state.cached[: step.rows]  # until `advance`
        verdict = verify(draft, cycle.scores, sampling_of(state, step), starts + 1, best.choices)
        features, places = cycle.output.features, verdict.places
        if places is not None:
            self._slots.cache.keep_path(starts, places)
            features = None if features is None else _at(features, places)
            best = best.at(places)
        choice = state.choice[: step.rows]
        self._reports.post(step.report.pack(verdict, best, active, draft.tokens, choice, cycle.scores))
        drawn = step.plan.depth if step.draws else 0
        emitted = state.advance(verdict, self._kept(features), absorbed=step.pairs > 0, drawn=drawn)
        self._advance_contexts(cycle.output.hidden, emitted, places)
        return features

    def _kept(self, features: Tensor | None) -> Tensor | None:
        """Those that a drafter waits for."""
        return None if self._slots.draft_cache is None else features

    def _advance_contexts(self, hidden: Tensor, emitted: Tensor, places: Tensor | None = None) -> None:
        """Takes in hidden states [rows, nodes + 1, hidden], those at `places` if there are any."""
        contexts = self._slots.contexts
        if contexts is not None and contexts.advances:
            contexts.advance(hidden if places is None else _at(hidden, places), emitted)


def _at(states: Tensor, places: Tensor) -> Tensor:
    """states [rows, width, n] at places [rows, depth + 1]."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
