"""Tables of a paper report about adapting: to a topic, from a stream, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping

from evospec.bench.markdown import number, table
from evospec.bench.paper.bars import learner_arms
from evospec.bench.results import Results

_REACHED = 0.97  # coverage at which a request shows that an arm has recovered


def recovery_table(part: Results, titles: Mapping[str, str]) -> str:
    """Of a stream whose topic switches."""
    rows = []
    for arm in () if part.stream is None else part.stream.arms:
        reached = [nth.number for nth in arm.requests if (nth.coverage or 0.0) >= _REACHED]
        after = arm.recovered_after
        rows.append(
            (
                titles.get(arm.arm, arm.arm),
                str(arm.switches),
                str(reached[0]) if reached else "never",
                "never" if after is None else f"{after}",
                *(f"{number(nth.coverage, '.3f')}, {nth.acceptance_length:.2f}" for nth in arm.requests[:4]),
            )
        )
    most = max((len(row) - 4 for row in rows), default=0)
    header = ("arm", "switches", "requests to recover", "tokens to recover")
    return table((*header, *(f"request {place + 1}" for place in range(most))), rows)


def learned_table(part: Results) -> str:
    """What a stream that drafters learned from brought while it ran."""
    names = {text: name for name, text in learner_arms(part).items()}
    visits = () if part.alignment is None else part.alignment.visits
    rows = []
    for text in dict.fromkeys(visit.arm for visit in visits if visit.arm in names):
        own = [visit for visit in visits if visit.arm == text]
        for visit in own:
            back = "never" if visit.recovered_after is None else str(visit.recovered_after)
            label = f"{visit.topic} (return)" if visit.returns else visit.topic
            rows.append(
                (names[text], label, str(visit.requests), f"{visit.gain:.3f}", f"{visit.late_gain:.3f}", back)
            )
    header = ("learned", "topic", "requests", "τ by no adapting", "last quarter", "requests to recover")
    return table(header, rows, numeric_from=2)


def updates_table(part: Results) -> str:
    """What updates take, by standard online adaptation's."""
    names = {text: name for name, text in learner_arms(part).items()}
    standard = next((one for one in part.updates if names.get(one.arm) == "online"), None)
    rows = []
    for one in part.updates:
        share = None if standard is None else one.peak_mb / standard.peak_mb
        rows.append(
            (
                names.get(one.arm, one.arm),
                f"`{one.arm}`",
                f"{one.peak_mb:,.0f}",
                number(share, ".1%"),
                f"{one.held_mb:,.0f}",
                f"{one.step_ms:.1f}",
                f"{one.update_ms:.0f}",
                f"{one.trained_parameters / 1e6:.1f}",
            )
        )
    header = (
        "learned",
        "arm",
        "peak MB",
        "of online",
        "held MB",
        "ms a step",
        "ms an update",
        "million parameters",
    )
    return table(header, rows, numeric_from=2)
