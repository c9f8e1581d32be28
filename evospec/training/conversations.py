"""On-policy conversations: the target writes user turns, and answers them.

Three kinds of user turns are mixed. Magpie-style (Xu et al., 2406.08464): after
the chat template's user prefix the model itself writes the question, from an
opening or from nothing. Tasks: a passage that the model wrote earlier is put to
work (summarise, translate, answer from it), which gives long prompts and answers
that copy. Given prompts: whatever the user brings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch

from evospec.align.degenerate import is_degenerate
from evospec.models.target import Target
from evospec.training.corpus import Document
from evospec.training.rollout import Continuation, Prompt, Rollout
from evospec.training.seeds import Seeds

LONGEST_PROMPT = 1_024  # tokens of a prompt, turn markers included; longer ones are left out
_TASKS_AT_ONCE = 64  # tokenised together, which takes as long as a few
_TASK_TOKENS = 128  # what a task may add to its passage, turn markers included


@dataclass(frozen=True, slots=True)
class TurnMarkers:
    """Token ids that the chat template puts around turns."""

    user: list[int]
    assistant: list[int]

    @classmethod
    def of(cls, target: Target) -> TurnMarkers:
        """Reads them off the template, by what it renders around a placeholder."""
        tokenizer = target.tokenizer
        placeholder = "@@PLACEHOLDER@@"
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": placeholder}], tokenize=False, add_generation_prompt=True
        )
        before, after = str(rendered).split(placeholder)
        return cls(
            user=tokenizer.encode(before, add_special_tokens=False),
            assistant=tokenizer.encode(after, add_special_tokens=False),
        )


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How much to generate and how.

    Attributes:
        rows: conversations written at once.
        question_tokens, answer_tokens: limits per turn; shorter answers than
            `shortest_answer` are thrown away, as are degenerate loops.
        passage_tokens: longest passage put into a task.
        task_share, prompt_share: share of conversations that are tasks, and that
            answer given prompts (when there are any); the rest are Magpie-style.
        greedy_share: share of answers decoded greedily; the rest at `temperature`.
        minutes: stop after this long, or after `conversations`, whichever is first.
    """

    rows: int = 64
    question_tokens: int = 256
    answer_tokens: int = 384
    passage_tokens: int = 512
    shortest_answer: int = 8
    task_share: float = 0.3
    prompt_share: float = 0.3
    greedy_share: float = 0.5
    temperature: float = 0.8
    minutes: float = 1.0
    conversations: int = 1_000_000
    seed: int = 0


def write_conversations(
    target: Target, seeds: Seeds, plan: RolloutPlan, report: Callable[[int, float], None]
) -> list[Document]:
    """Generates conversations until the plan's time or count is reached.

    Answers under way when time is up are kept as far as they got.

    Args:
        report: called with (tokens written so far, share of the plan done).
    """
    author = _Author(target, seeds, plan)
    positions = max(LONGEST_PROMPT, plan.passage_tokens + _TASK_TOKENS) + plan.answer_tokens
    rollout: Rollout[_Turn] = Rollout(
        target,
        plan.rows,
        min(positions, target.max_length),
        max(plan.answer_tokens, plan.question_tokens),
        plan.seed,
    )
    began, tokens = monotonic(), 0

    def over() -> bool:
        spent = (monotonic() - began) / 60 / plan.minutes
        done = max(spent, len(author.documents) / plan.conversations)
        report(tokens, min(done, 1.0))
        return done >= 1.0

    for continuation in rollout.generate(author.prompts(), over):
        tokens += author.receive(continuation)
    for continuation in rollout.unfinished():
        author.receive(continuation)
    del rollout
    if target.device.type == "cuda":
        torch.cuda.empty_cache()  # its caches fill most of the device, which others may share
    return author.documents


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a row is writing: an answer, or a question that began with `start`."""

    is_answer: bool
    start: list[int]


class _Author:
    """Puts user turns together and keeps what the target answers.

    Attributes:
        documents: conversations worth keeping.
    """

    def __init__(self, target: Target, seeds: Seeds, plan: RolloutPlan) -> None:
        self.documents: list[Document] = []
        self._rng = np.random.default_rng(plan.seed)
        self._target = target
        self._plan = plan
        self._tasks = seeds.tasks
        self._tasks_ahead: deque[list[int]] = deque()
        self._markers = TurnMarkers.of(target)
        self._openings = [self._encode(text) for text in seeds.openings]
        markers = len(self._markers.user) + len(self._markers.assistant)
        self._longest = min(target.max_length - plan.answer_tokens, LONGEST_PROMPT) - markers
        self._paragraph = self._encode("\n\n")
        turns = self._encode_all(seeds.prompts)
        self._prompts = [turn for turn in turns if 0 < len(turn) <= self._longest]
        self._asked: deque[list[int]] = deque()

    def prompts(self) -> Iterator[Prompt[_Turn]]:
        """Endless: questions that were written meanwhile are answered first."""
        while True:
            if self._asked:
                yield self._answer(self._asked.popleft())
                continue
            kind = self._rng.random()
            if self._tasks and self.documents and kind < self._plan.task_share:
                yield self._answer(self._task())
            elif self._prompts and kind > 1.0 - self._plan.prompt_share:
                yield self._answer(self._prompts[self._pick(len(self._prompts))])
            else:
                start = self._openings[self._pick(len(self._openings))]
                context = self._markers.user + start
                yield Prompt(context, 1.0, self._plan.question_tokens, _Turn(is_answer=False, start=start))

    def receive(self, continuation: Continuation[_Turn]) -> int:
        """Takes in a finished row; returns the tokens that were written."""
        turn, tokens = continuation.prompt.owner, continuation.tokens
        if not turn.is_answer:
            ended = bool(tokens) and tokens[-1] in self._target.eos_ids
            question = turn.start + (tokens[:-1] if ended else tokens)
            if question:
                self._asked.append(question)
        elif len(tokens) >= self._plan.shortest_answer and not is_degenerate(np.asarray(tokens)):
            context = continuation.prompt.tokens
            self.documents.append(Document(np.asarray([*context, *tokens]), len(context)))
        return len(tokens)

    def _answer(self, turn: list[int]) -> Prompt[_Turn]:
        context = self._markers.user + turn + self._markers.assistant
        heat = 0.0 if self._rng.random() < self._plan.greedy_share else self._plan.temperature
        return Prompt(context, heat, self._plan.answer_tokens, _Turn(is_answer=True, start=turn))

    def _task(self) -> list[int]:
        if not self._tasks_ahead:
            self._tasks_ahead.extend(self._encode_all([self._task_text() for _ in range(_TASKS_AT_ONCE)]))
        return self._tasks_ahead.popleft()[: self._longest]

    def _task_text(self) -> str:
        passage = self._passage()
        passages = 1
        while passages < 3 and self._rng.random() < 0.3:
            passage += self._paragraph + self._passage()
            passages += 1
        passage = passage[: self._plan.passage_tokens]
        text = str(self._target.tokenizer.decode(passage, skip_special_tokens=True)).strip()
        return self._tasks[self._pick(len(self._tasks))].replace("{passage}", text)

    def _passage(self) -> list[int]:
        document = self.documents[self._pick(len(self.documents))]
        answer: list[int] = document.tokens[document.answer :].tolist()
        return answer[:-1] if answer[-1] in self._target.eos_ids else answer

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self._target.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return encoded

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._target.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _pick(self, count: int) -> int:
        return int(self._rng.integers(count))
