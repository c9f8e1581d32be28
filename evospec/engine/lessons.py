"""What cycles and prompts leave to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evospec.engine.host_copy import Fetched
from evospec.engine.report import Report
from evospec.engine.request import Request
from evospec.engine.state import RequestState
from evospec.engine.trace_pasts import FetchedPast
from evospec.vocab.protocol import Ranked, VocabularyPolicy


@dataclass(frozen=True, slots=True)
class Emission:
    """What one row of a cycle emitted.

    Attributes:
        tokens: the kept tokens.
        last: whether the request ended with them.
    """

    state: RequestState
    row: int
    tokens: list[int]
    drafted: int
    accepted: int
    last: bool


@dataclass(frozen=True, slots=True)
class Lesson:
    """A cycle that nobody has learned from yet.

    Attributes:
        features: [rows, places, taps * hidden].
        pasts: of requests whose trace windows fill up, by id.
    """

    report: Report
    emissions: list[Emission]
    features: Fetched | None
    pasts: Mapping[str, FetchedPast]


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A processed prompt that nobody has learned from yet.

    Attributes:
        context: its embedding [hidden].
        best: the target's best tokens at its latest positions [positions, k].
        features: at its latest positions but the last [positions, taps * hidden].
        past: before these.
    """

    request: Request
    context: Fetched | None
    best: Fetched | None
    features: Fetched | None
    past: FetchedPast | None


@dataclass(slots=True)
class Backlog:
    """What some learner has yet to learn from, in order."""

    prompts: list[ReadPrompt] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)


def teach(vocabulary: VocabularyPolicy, lessons: Sequence[Lesson]) -> None:
    """What all requests of some cycles have to say, at once: one by one would take longer than a cycle."""
    emitted: dict[str, list[int]] = {}
    drafted: dict[str, list[np.ndarray]] = {}
    ranked: list[Ranked] = []
    for lesson in lessons:
        wanted, emissions = lesson.report.wanted, lesson.emissions
        for emission in emissions:
            emitted.setdefault(emission.state.request.id, []).extend(emission.tokens)
        if wanted.ranked and emissions:
            ranked.append(_ranked(lesson))
        if wanted.drafted:
            drafts = lesson.report.drafts()
            for emission in emissions:
                drafted.setdefault(emission.state.request.id, []).append(drafts[emission.row])
    if emitted:
        vocabulary.emitted(emitted)
    if ranked:
        vocabulary.ranked(Ranked.joined(ranked))
    if drafted:
        vocabulary.drafted({request_id: np.concatenate(each) for request_id, each in drafted.items()})


def _ranked(lesson: Lesson) -> Ranked:
    """The target's best tokens where it decided those that were emitted."""
    rows = [emission.row for emission in lesson.emissions]
    counts = [len(emission.tokens) for emission in lesson.emissions]
    best = lesson.report.best()
    decided = np.arange(best.shape[1]) < np.array(counts)[:, None]  # [emissions, places]
    ids = best[rows][decided][:, : lesson.report.wanted.ranked]
    return Ranked([emission.state.request.id for emission in lesson.emissions], counts, ids)
