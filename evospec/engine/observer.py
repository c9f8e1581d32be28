"""What cycles teach: reported to the vocabulary, the trace recorder and the semantic source.

Learning waits until the next cycle has been launched, so that the device never waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.align.recorder import TraceRecorder
from evospec.decoding.best import best_tokens
from evospec.engine.contexts import ContextVectors
from evospec.engine.host_copy import Fetched, fetch
from evospec.engine.lessons import Backlog, Emission, Lesson, ReadPrompt, teach
from evospec.engine.passes import Prompted
from evospec.engine.report import Report, Wanted
from evospec.engine.state import RequestState
from evospec.engine.trace_pasts import FetchedPast, TracePasts
from evospec.models.target import Target
from evospec.vocab.protocol import Ranked, VocabularyPolicy
from evospec.vocab.semantic import SemanticSource

_MOST_PARTS = 8  # that the cycles learned from at once are taken in by: each has to come soon
_LOGITS_AT_ONCE = 64  # prompt positions: logits are as wide as the vocabulary


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

    def wanted(self, vocab_size: int, *, traced: bool) -> Wanted:
        """What a cycle has to report to them."""
        ranked = self.ranked_k if self.vocabulary is not None else 0
        best = self.trace_k if traced and self.recorder is not None else 0
        drafted = self.drafted and self.vocabulary is not None
        return Wanted(min(ranked, vocab_size), min(best, vocab_size), drafted)


@dataclass(frozen=True, slots=True, eq=False)
class _Best:
    """The target's best tokens and their log-probabilities, [rows, places, k] each."""

    ids: np.ndarray
    logprobs: np.ndarray


class Observer:
    """Feeds the learners.

    Args:
        contexts: what slots hold of the requests in them; None when nobody searches.
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
        # What nobody has learned from: the vocabulary, which drafts wait for, and all others.
        self._untaught = Backlog()
        self._unrecorded = Backlog()
        self._ended: list[RequestState] = []  # without a last emission
        self._leaving: set[str] = set()  # requests that have ended, but not for learners
        self._vectors: list[tuple[str, Fetched]] = []  # contexts to look up, by request
        self._untraced = learners.wanted(target.vocab_size, traced=False)
        self._traced = learners.wanted(target.vocab_size, traced=True)

    @property
    def usually_wanted(self) -> Wanted:
        """What most cycles have to report: requests are traced unless they opt out."""
        return self._untraced if self._recorder is None else self._traced

    def wanted(self, states: Sequence[RequestState]) -> Wanted:
        """What a cycle of these requests has to report."""
        if self._recorder is not None and any(state.request.trace for state in states):
            return self._traced
        return self._untraced

    def admit(self, state: RequestState) -> None:
        if self._vocabulary is not None:
            self._vocabulary.admit(state.request)

    @torch.inference_mode()
    def prompt(self, state: RequestState, prompted: Prompted) -> None:
        """Keeps a completed prefill to learn from."""
        request, learners = state.request, self._learners
        context = best = features = past = None
        if self._semantic is not None and self._contexts is not None:
            context = fetch(self._contexts.vector(state.slot))
        if self._vocabulary is not None and self._untraced.ranked and learners.prompt_ranked:
            parts = [
                best_tokens(self._target.scores(hidden[None]), self._untraced.ranked).ids[0]
                for hidden in prompted.hidden[-learners.prompt_ranked :].split(_LOGITS_AT_ONCE)
            ]
            best = fetch(torch.cat(parts))
        if self._recorder is not None and prompted.features is not None and request.trace:
            latest = prompted.features[:-1][-self._recorder.context :]
            features = fetch(latest)
            past = None if self._pasts is None else self._pasts.prompt(state, len(latest))
        read = ReadPrompt(request, context, best, features, past)
        self._untaught.prompts.append(read)
        self._unrecorded.prompts.append(read)

    def note(self, report: Report, emissions: list[Emission], features: Fetched | None) -> None:
        """Keeps a cycle to learn from."""
        pasts: dict[str, FetchedPast] = {}
        if self._pasts is not None:
            for emission in emissions:
                past = self._pasts.emitted(emission.state, len(emission.tokens))
                if past is not None:
                    pasts[emission.state.request.id] = past
        lesson = Lesson(report, emissions, features, pasts)
        self._untaught.lessons.append(lesson)
        self._unrecorded.lessons.append(lesson)
        self._leaving.update(emission.state.request.id for emission in emissions if emission.last)

    def ended(self, state: RequestState) -> None:
        """A request has ended without another token; learners hear of it after what it emitted."""
        self._ended.append(state)
        self._leaving.add(state.request.id)

    def still_learns(self, request_id: str) -> bool:
        """Whether learners have yet to hear of the end of a request of this name."""
        return request_id in self._leaving

    @property
    def untaught(self) -> int:
        """Cycles that the vocabulary has not learned from."""
        return len(self._untaught.lessons)

    def teach(self) -> int:
        """Lets the vocabulary learn from what came since the last call, and change; returns how many head
        rows were written."""
        fresh, self._untaught = self._untaught, Backlog()
        if self._vocabulary is None:
            return 0
        for prompt in fresh.prompts:
            if prompt.best is not None:
                best = prompt.best.tensor().numpy()
                self._vocabulary.ranked(Ranked([prompt.request.id], [len(best)], best))
        teach(self._vocabulary, fresh.lessons)
        return self._vocabulary.apply()

    def record(self) -> Iterator[None]:
        """Lets all others learn from what came since the last call, in parts that take well less than a cycle
        each. Before it the vocabulary must have been taught, since it hears here who has ended; the next
        call must come after the last part."""
        fresh, self._unrecorded = self._unrecorded, Backlog()
        vectors, self._vectors = self._vectors, []
        ended, self._ended = self._ended, []
        for prompt in fresh.prompts:
            self._read(prompt)
            yield
        for request_id, vector in vectors:
            if self._semantic is not None:
                self._semantic.look_up(request_id, vector.tensor().numpy())
        at_once = max(-(-len(fresh.lessons) // _MOST_PARTS), 1)
        for first in range(0, len(fresh.lessons), at_once):
            for lesson in fresh.lessons[first : first + at_once]:
                self._take_in(lesson)
            yield
        for state in ended:
            self._finish(state)
        if self._vocabulary is not None:
            last = sum(one.last for lesson in fresh.lessons for one in lesson.emissions)
            for _ in range(max(last, 1)):
                self._vocabulary.study()
                yield

    def _read(self, prompt: ReadPrompt) -> None:
        request = prompt.request
        if self._semantic is not None and prompt.context is not None:
            self._semantic.admit(request, prompt.context.tensor().numpy())
        if self._recorder is not None and prompt.features is not None and prompt.past is not None:
            features, past = prompt.features.tensor(), prompt.past.read()
            self._recorder.prompt(request.id, request.prompt_ids, features, past, request.tenant)

    def _take_in(self, lesson: Lesson) -> None:
        best = _Best(lesson.report.best(), lesson.report.logprobs())
        for emission in lesson.emissions:
            if self._semantic is not None and self._contexts is not None:
                self._follow(self._semantic, self._contexts, emission, best)
            if self._recorder is not None and lesson.features is not None and emission.state.request.trace:
                self._record(self._recorder, emission, best, lesson.features.tensor(), lesson)
            if emission.last:
                self._finish(emission.state)

    def _follow(
        self, semantic: SemanticSource, contexts: ContextVectors, emission: Emission, best: _Best
    ) -> None:
        request_id, tokens = emission.state.request.id, emission.tokens
        due = semantic.emitted(request_id, tokens, best.ids[emission.row, : len(tokens)])
        # One a cycle: with many requests, look-ups that wait for the next cycle do no harm. A slot whose
        # request has ended meanwhile may be another's.
        if due and emission.state.running and not self._vectors:
            semantic.asked(request_id)
            self._vectors.append((request_id, fetch(contexts.vector(emission.state.slot))))

    def _record(
        self, recorder: TraceRecorder, emission: Emission, best: _Best, features: Tensor, lesson: Lesson
    ) -> None:
        request_id, row, count = emission.state.request.id, emission.row, len(emission.tokens)
        past = lesson.pasts.get(request_id)
        recorder.emitted(
            request_id,
            features=features[row, :count],
            tokens=emission.tokens,
            top_ids=best.ids[row, :count, : self._traced.traced],
            top_logprobs=best.logprobs[row, :count],
            drafted=emission.drafted,
            accepted=emission.accepted,
            missed=~np.array(lesson.report.covered(row, count)),
            past=None if past is None else past.read(),
        )

    def _finish(self, state: RequestState) -> None:
        """A request has ended, and all it emitted is learned."""
        request_id = state.request.id
        self._leaving.discard(request_id)
        learn = state.request.trace and not state.cancelled
        if self._vocabulary is not None:
            self._vocabulary.finish(request_id, learn=learn)
        if self._semantic is not None:
            self._semantic.finish(request_id, learn=learn)
        if self._recorder is not None and state.request.trace:
            self._recorder.finish(request_id)
        if self._pasts is not None:
            self._pasts.finish(request_id)
