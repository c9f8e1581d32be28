"""What cycles and prompts leave to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from evospec.align.window import Cycle
from evospec.engine.host_copy import Fetched
from evospec.engine.report import Report
from evospec.engine.request import Request
from evospec.engine.state import RequestState
from evospec.engine.trace_pasts import FetchedPast
from evospec.vocab.protocol import Ranked, VocabularyPolicy
from evospec.vocab.semantic import LIKELY


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
    """What some learner has yet to learn from: of each request its prompt, what it emitted, and its end.

    Attributes:
        ended: requests that ended without a last emission.
    """

    prompts: list[ReadPrompt] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    ended: list[RequestState] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.prompts or self.lessons or self.ended)

    def extend(self, later: Backlog) -> None:
        self.prompts += later.prompts
        self.lessons += later.lessons
        self.ended += later.ended


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A lesson's report, taken apart once for all its rows.

    Attributes:
        features: [places, taps * hidden] a row; none when nothing is traced, like the next three.
        best: the target's best tokens, best first, int64 [places, traced] a row.
        logprobs: their log-probabilities [places, traced] a row.
        missed: whether tokens were outside the active rows, bool [places] a row.
        likely: the first of the best ones, those that a context learns from, by row and place.
    """

    features: Sequence[Tensor]
    best: Sequence[np.ndarray]
    logprobs: Sequence[np.ndarray]
    missed: Sequence[np.ndarray]
    likely: list[list[list[int]]]
    pasts: Mapping[str, FetchedPast]

    @classmethod
    def of(cls, lesson: Lesson) -> Outcome:
        report, best = lesson.report, lesson.report.best()
        likely: list[list[list[int]]] = best[:, :, :LIKELY].tolist()
        if lesson.features is None:
            return cls((), (), (), (), likely, lesson.pasts)
        return cls(
            lesson.features.tensor().unbind(),
            list(best[:, :, : report.wanted.traced]),
            list(report.logprobs()),
            list(report.missed()),
            likely,
            lesson.pasts,
        )


@dataclass(slots=True)
class Course:
    """What one request emitted in several cycles, in order."""

    state: RequestState
    emissions: list[Emission] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def last(self) -> bool:
        """Whether the request ended with it."""
        return self.emissions[-1].last

    def cycles(self) -> Iterator[Cycle]:
        """What traces record of it."""
        request_id = self.state.request.id
        for emission, outcome in zip(self.emissions, self.outcomes, strict=True):
            if not outcome.features:
                continue
            row = emission.row
            past = outcome.pasts.get(request_id)
            yield Cycle(
                outcome.features[row],
                emission.tokens,
                outcome.best[row],
                outcome.logprobs[row],
                emission.drafted,
                emission.accepted,
                outcome.missed[row],
                None if past is None else past.read(),
            )


def courses(lessons: Sequence[Lesson]) -> list[Course]:
    """By request what some cycles emitted: each is told once, however many they are."""
    found: dict[str, Course] = {}
    for lesson in lessons:
        outcome = Outcome.of(lesson)
        for emission in lesson.emissions:
            request_id = emission.state.request.id
            course = found.get(request_id)
            if course is None:
                course = found[request_id] = Course(emission.state)
            course.emissions.append(emission)
            course.outcomes.append(outcome)
    return list(found.values())


def teach(vocabulary: VocabularyPolicy, fresh: Backlog) -> None:
    """What all requests of some cycles have to say, at once: one by one would take longer than a cycle."""
    read = [
        _ranked_prompt(prompt.request, prompt.best) for prompt in fresh.prompts if prompt.best is not None
    ]
    if read:
        vocabulary.ranked(Ranked.joined(read))
    emitted: dict[str, list[int]] = {}
    drafted: dict[str, list[np.ndarray]] = {}
    ranked: list[Ranked] = []
    for lesson in fresh.lessons:
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


def _ranked_prompt(request: Request, best: Fetched) -> Ranked:
    ids = best.tensor().numpy()
    return Ranked([request.id], [len(ids)], ids)


def _ranked(lesson: Lesson) -> Ranked:
    """The target's best tokens where it decided those that were emitted."""
    rows = [emission.row for emission in lesson.emissions]
    counts = [len(emission.tokens) for emission in lesson.emissions]
    best = lesson.report.best()
    decided = np.arange(best.shape[1]) < np.array(counts)[:, None]  # [emissions, places]
    ids = best[rows][decided][:, : lesson.report.wanted.ranked]
    return Ranked([emission.state.request.id for emission in lesson.emissions], counts, ids)
