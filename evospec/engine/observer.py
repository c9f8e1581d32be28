"""What cycles teach: reported to the vocabulary, the trace recorder and the semantic source.

Learning waits until the next cycle has been launched, so that the device never waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.align.recorder import TraceRecorder
from evospec.decoding.best import best_tokens
from evospec.engine.contexts import ContextVectors
from evospec.engine.host_copy import Fetched, fetch
from evospec.engine.lessons import Backlog, Course, Emission, Lesson, ReadPrompt, courses, teach
from evospec.engine.passes import Prompted
from evospec.engine.report import Report, Wanted
from evospec.engine.request import Request
from evospec.engine.state import RequestState
from evospec.engine.trace_pasts import FetchedPast, TracePasts
from evospec.models.target import Target
from evospec.vocab.protocol import VocabularyPolicy
from evospec.vocab.semantic import SemanticSource

_AT_ONCE = 64  # emissions that are recorded in one part, about: it has to be over soon
_TOO_MANY = 32  # cycles that wait to be recorded; beyond that no further request is traced
_LOGITS_AT_ONCE = 64  # prompt positions: logits are as wide as the vocabulary
_FEWEST_RANKED = 8  # prompt positions


@dataclass(frozen=True, slots=True)
class Learners:
    """Who learns; each may be absent.

    Attributes:
        vocabulary: which rows the drafter scores; None scores the full head.
        ranked_k: target's best tokens reported to the vocabulary per position.
        prompt_ranked: latest prompt positions they are reported for at prefill.
        drafted: whether draft tokens are reported to the vocabulary.
        recorder: where acceptance traces are assembled.
        trace_k: target's best tokens per traced position.
        semantic: the request contexts to search for.
    """

    vocabulary: VocabularyPolicy | None = None
    ranked_k: int = 0
    prompt_ranked: int = 0
    drafted: bool = False
    recorder: TraceRecorder | None = None
    trace_k: int = 0
    semantic: SemanticSource | None = None

    @property
    def context_decay(self) -> float | None:
        """What contexts keep of themselves at each token, see `ContextVectors`; None: nobody asks for any."""
        if self.semantic is not None:
            return self.semantic.decay
        return None if self.recorder is None else 1.0  # traces bring those of prompts

    def wanted(self, vocab_size: int, *, traced: bool) -> Wanted:
        """What a cycle has to report to them."""
        ranked = self.ranked_k if self.vocabulary is not None else 0
        best = self.trace_k if traced and self.recorder is not None else 0
        drafted = self.drafted and self.vocabulary is not None
        return Wanted(min(ranked, vocab_size), min(best, vocab_size), drafted)


class Observer:
    """Feeds the learners: first the vocabulary, which drafts wait for, then all others.

    What comes waits to be taught, and what has been taught to be recorded: whoever hears of a request's end
    has heard all that it emitted, the vocabulary too.

    Args:
        contexts: what slots hold of the requests in them; None when nobody asks.
        pasts: what the drafter's cache holds of them; None when nothing is recorded.
    """

    def __init__(
        self,
        target: Target,
        learners: Learners,
        contexts: ContextVectors | None,
        pasts: TracePasts | None,
    ) -> None:
        self._target = target
        self._learners = learners
        self._vocabulary = learners.vocabulary
        self._recorder = learners.recorder
        self._semantic = learners.semantic
        self._contexts = contexts
        self._pasts = pasts
        self._untaught = Backlog()
        self._unrecorded = Backlog()
        self._leaving: set[str] = set()  # requests that have ended, but not for learners
        self._vectors: list[tuple[str, Fetched]] = []  # contexts to look up, by request
        self._untraced = learners.wanted(target.vocab_size, traced=False)
        self._traced = learners.wanted(target.vocab_size, traced=True)

    @property
    def wanted(self) -> Wanted:
        """What cycles have to report, the same whoever runs: graphs are captured for this form, and those of
        another would be captured while requests wait that are not traced."""
        return self._untraced if self._recorder is None else self._traced

    def records(self, states: Sequence[RequestState]) -> bool:
        """Whether any of these requests is traced."""
        return self._recorder is not None and any(state.traced for state in states)

    def _is_to_be_traced(self, request: Request) -> bool:
        """Of a request that is about to begin: not if it opted out, nor while so much waits to be recorded
        that decoding would have to wait for it."""
        if self._recorder is None or not request.trace:
            return False
        traced = self.unrecorded <= _TOO_MANY and self._recorder.budget.left
        self._recorder.counts.skipped += not traced
        return traced

    def admit(self, state: RequestState) -> None:
        if self._vocabulary is not None:
            self._vocabulary.admit(state.request)

    @torch.inference_mode()
    def prompt(self, state: RequestState, prompted: Prompted, *, behind: int = 0) -> None:
        """Keeps a completed prefill to learn from.

        Args:
            behind: prompts that wait for this one. Ranking takes time of theirs: they share its positions.
        """
        request, learners = state.request, self._learners
        context = best = features = past = None
        state.traced = self._is_to_be_traced(request)
        if self._contexts is not None and (state.traced or self._semantic is not None):
            context = fetch(self._contexts.vector(state.slot))
        if self._vocabulary is not None and self._untraced.ranked and learners.prompt_ranked:
            best = self._ranked(prompted.hidden[-_share(learners.prompt_ranked, behind + 1) :])
        if self._recorder is not None and prompted.features is not None and state.traced:
            latest = prompted.features[:-1][-self._recorder.context :]
            features = fetch(latest)
            past = None if self._pasts is None else self._pasts.prompt(state, len(latest))
        self._untaught.prompts.append(ReadPrompt(request, context, best, features, past))

    def _ranked(self, hidden: Tensor) -> Fetched:
        """The target's best tokens at prompt positions [positions, hidden]: [positions, ranked]."""
        parts = [
            best_tokens(self._target.scores(part[None]), self._untraced.ranked).ids[0]
            for part in hidden.split(_LOGITS_AT_ONCE)
        ]
        return fetch(torch.cat(parts))

    def note(self, report: Report, emissions: list[Emission], features: Fetched | None) -> None:
        """Keeps a cycle to learn from."""
        pasts: dict[str, FetchedPast] = {}
        if self._pasts is not None:
            for emission in emissions:
                past = self._pasts.emitted(emission.state, len(emission.tokens))
                if past is not None:
                    pasts[emission.state.request.id] = past
        self._untaught.lessons.append(Lesson(report, emissions, features, pasts))
        self._leaving.update(emission.state.request.id for emission in emissions if emission.last)

    def ended(self, state: RequestState) -> None:
        """A request has ended without another token; learners hear of it after what it emitted."""
        self._untaught.ended.append(state)
        self._leaving.add(state.request.id)

    def still_learns(self, request_id: str) -> bool:
        """Whether learners have yet to hear of the end of a request of this name."""
        return request_id in self._leaving

    @property
    def has_untaught(self) -> bool:
        """Whether the vocabulary has anything to learn from."""
        return not self._untaught.empty

    @property
    def has_unrecorded(self) -> bool:
        """Whether the others have, once the vocabulary has learned."""
        return not self._unrecorded.empty

    @property
    def has_unrecorded_prompts(self) -> bool:
        """Whether there are prompts among it, whose first look-up drafts profit from."""
        return bool(self._unrecorded.prompts)

    @property
    def has_untaught_prompts(self) -> bool:
        """Whether there are prompts among it, which take longer."""
        return bool(self._untaught.prompts)

    @property
    def skipped(self) -> int:
        """Requests that might have been traced, but came while recording was behind, or over its budget."""
        return 0 if self._recorder is None else self._recorder.counts.skipped

    @property
    def untaught(self) -> int:
        """Cycles that the vocabulary has not learned from."""
        return len(self._untaught.lessons)

    @property
    def unrecorded(self) -> int:
        """Cycles that only the vocabulary has learned from."""
        return len(self._unrecorded.lessons)

    def teach(self) -> int:
        """Lets the vocabulary learn from what came since the last call, and change; returns how many head
        rows were written."""
        fresh, self._untaught = self._untaught, Backlog()
        self._unrecorded.extend(fresh)
        if self._vocabulary is not None:
            teach(self._vocabulary, fresh)
        return self.apply()

    def apply(self) -> int:
        """Lets the vocabulary change by what it was told; returns how many head rows were written."""
        return 0 if self._vocabulary is None else self._vocabulary.apply()

    def record(self) -> Iterator[None]:
        """Lets all others learn from what the vocabulary has been taught since the last call, in parts that
        take well less than a cycle each; the next call must come after the last part."""
        # At once: what is taught while parts are recorded is of later cycles, and of requests they may begin.
        fresh, self._unrecorded = self._unrecorded, Backlog()
        vectors = [each for each in self._vectors if each[1].arrived]
        self._vectors = [each for each in self._vectors if not each[1].arrived]
        return self._recorded(fresh, vectors)

    def _recorded(self, fresh: Backlog, vectors: list[tuple[str, Fetched]]) -> Iterator[None]:
        for prompt in fresh.prompts:
            self._read(prompt)
            yield
        for request_id, vector in vectors:
            if self._semantic is not None:
                self._semantic.look_up(request_id, vector.tensor().numpy())
        taken = 0
        for course in courses(fresh.lessons):
            self._take_in(course)
            taken += len(course.emissions)
            if taken >= _AT_ONCE or course.last:
                taken = 0
                yield
            if course.last:
                yield from self._leave(course.state)
        if taken:
            yield
        for state in fresh.ended:
            yield from self._leave(state)

    def _leave(self, state: RequestState) -> Iterator[None]:
        self._finish(state)
        yield
        if self._vocabulary is not None:
            self._vocabulary.study()
            yield

    def _read(self, prompt: ReadPrompt) -> None:
        request = prompt.request
        if self._semantic is not None and prompt.context is not None:
            self._semantic.admit(request, prompt.context.tensor().numpy())
        if self._recorder is None or prompt.features is None or prompt.past is None or prompt.context is None:
            return
        features, past, context = prompt.features.tensor(), prompt.past.read(), prompt.context.tensor()
        self._recorder.prompt(request.id, request.prompt_ids, features, past, context, request.tenant)

    def _take_in(self, course: Course) -> None:
        if self._semantic is not None and self._contexts is not None:
            self._follow(self._semantic, self._contexts, course)
        if self._recorder is not None and course.state.traced:
            self._recorder.emitted(course.state.request.id, course.cycles())

    def _follow(self, semantic: SemanticSource, contexts: ContextVectors, course: Course) -> None:
        state, due = course.state, False
        for emission, outcome in zip(course.emissions, course.outcomes, strict=True):
            best = outcome.likely[emission.row][: len(emission.tokens)]
            due = semantic.emitted(state.request.id, emission.tokens, best)
        # One a cycle: with many requests, look-ups that wait for the next cycle do no harm. A slot whose
        # request has ended meanwhile may be another's.
        if due and state.running and not self._vectors:
            semantic.asked(state.request.id)
            self._vectors.append((state.request.id, fetch(contexts.vector(state.slot))))

    def _finish(self, state: RequestState) -> None:
        """A request has ended, and all it emitted is learned."""
        request_id = state.request.id
        self._leaving.discard(request_id)
        learn = state.request.trace and not state.cancelled
        if self._vocabulary is not None:
            self._vocabulary.finish(request_id, learn=learn)
        if self._semantic is not None:
            self._semantic.finish(request_id, learn=learn)
        if self._recorder is not None and state.traced:
            self._recorder.finish(request_id)
        if self._pasts is not None:
            self._pasts.finish(request_id)


def _share(positions: int, prompts: int) -> int:
    """How many of the positions that are ranked of one prompt each of several has."""
    return max(positions // prompts, min(positions, _FEWEST_RANKED))
