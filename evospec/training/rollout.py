"""On-policy text: the target writes user turns and answers at large batch.

Magpie-style (Xu et al., 2406.08464): after the chat template's user prefix the
model itself writes a question; after the assistant prefix it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from evospec.align.degenerate import is_degenerate
from evospec.models.kv_cache import KVCache, Window
from evospec.models.target import Target
from evospec.training.corpus import Document


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


@torch.inference_mode()
def generate_batch(
    target: Target,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    max_tokens: int,
    generator: torch.Generator,
    *,
    enough: float = 0.9,
) -> list[list[int]]:
    """Continues all prompts at once until `enough` of them have ended or `max_tokens` are written.

    Returns:
        New tokens per prompt; those that ended by themselves close with an end-of-sequence token.
    """
    rows, device = len(prompts), target.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    tokens = torch.zeros(rows, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    cache = target.new_cache(rows, width + max_tokens)
    last = _prefill(target, tokens.to(device), lengths, cache)  # [rows, hidden]

    heat = torch.tensor(temperatures, device=device)[:, None]
    eos = torch.tensor(sorted(target.eos_ids), device=device)
    written = torch.full((rows, max_tokens), -1, dtype=torch.int64, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    for step in range(max_tokens):
        choice = _choose(target.logits(last), heat, generator)
        written[:, step] = torch.where(alive, choice, -1)
        alive &= ~torch.isin(choice, eos)
        if step % 16 == 15 and float(alive.float().mean()) < 1.0 - enough:
            break
        if step + 1 < max_tokens:
            window = Window(0, lengths + step, 1, width + step + 1)
            last = target.forward(choice[:, None], window, cache).hidden[:, 0]
    return [[token for token in row if token >= 0] for row in written.tolist()]


def _prefill(
    target: Target, tokens: Tensor, lengths: Tensor, cache: KVCache, rows_per_pass: int = 256
) -> Tensor:
    """Prefills padded prompts [rows, width] some rows at a time; returns each one's last hidden state.

    Padding writes keys past a prompt's end, which its own tokens overwrite before they are read.
    """
    last = []
    for first in range(0, tokens.shape[0], rows_per_pass):
        part = tokens[first : first + rows_per_pass]
        ends = lengths[first : first + rows_per_pass] - 1
        window = Window(first, torch.zeros_like(ends), part.shape[1], part.shape[1])
        hidden = target.forward(part, window, cache).hidden  # [rows, width, hidden]
        last.append(hidden[torch.arange(part.shape[0], device=hidden.device), ends])
    return torch.cat(last)


def _choose(logits: Tensor, heat: Tensor, generator: torch.Generator) -> Tensor:
    """Samples rows at their temperatures (0: argmax) by the Gumbel-max trick, in place."""
    greedy = heat == 0
    noise = torch.empty_like(logits).exponential_(generator=generator).log_().neg_()
    noise.mul_(heat)
    return logits.add_(noise.masked_fill_(greedy, 0.0)).argmax(dim=-1)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How much to generate and how.

    Attributes:
        rows: conversations written at once.
        question_tokens, answer_tokens: limits per turn; shorter answers than
            `shortest_answer` are thrown away, as are degenerate loops.
        greedy_share: share of answers decoded greedily; the rest at `temperature`.
        minutes: stop after this long, or after `conversations`, whichever is first.
    """

    rows: int = 64
    question_tokens: int = 96
    answer_tokens: int = 384
    shortest_answer: int = 8
    greedy_share: float = 0.5
    temperature: float = 0.8
    minutes: float = 1.0
    conversations: int = 1_000_000
    seed: int = 0


def write_conversations(
    target: Target,
    openings: Sequence[str],
    prompts: Sequence[str],
    plan: RolloutPlan,
    report: Callable[[int, float], None],
) -> list[Document]:
    """Generates conversations until the plan's time or count is reached.

    Args:
        openings: beginnings of user turns for the target to complete.
        prompts: user turns given whole; a third of the conversations answer these, when there are any.
        report: called with (tokens so far, share of the plan done).
    """
    markers = TurnMarkers.of(target)
    rng = np.random.default_rng(plan.seed)
    generator = torch.Generator(device=target.device).manual_seed(plan.seed)
    encoded = [target.tokenizer.encode(text, add_special_tokens=False) for text in openings]
    given = [target.tokenizer.encode(text, add_special_tokens=False) for text in prompts]
    limit = target.max_length - plan.answer_tokens - len(markers.user) - len(markers.assistant)
    given = [turn for turn in given if len(turn) <= min(limit, 1024)]
    documents: list[Document] = []
    began, tokens = monotonic(), 0
    while True:
        elapsed = (monotonic() - began) / 60
        done = max(elapsed / plan.minutes, len(documents) / plan.conversations)
        report(tokens, min(done, 1.0))
        if done >= 1.0 and documents:
            return documents
        questions = _questions(target, encoded, given, markers, plan, rng, generator)
        heats = np.where(rng.random(len(questions)) < plan.greedy_share, 0.0, plan.temperature)
        contexts = [markers.user + question + markers.assistant for question in questions]
        answers = generate_batch(target, contexts, heats.tolist(), plan.answer_tokens, generator)
        for context, answer in zip(contexts, answers, strict=True):
            if len(answer) >= plan.shortest_answer and not is_degenerate(np.asarray(answer)):
                documents.append(Document(np.asarray(context + answer), len(context)))
                tokens += len(answer)


def _questions(
    target: Target,
    openings: list[list[int]],
    given: list[list[int]],
    markers: TurnMarkers,
    plan: RolloutPlan,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> list[list[int]]:
    from_given = plan.rows // 3 if given else 0
    chosen = [given[index] for index in rng.integers(len(given), size=from_given)] if given else []
    starts = [openings[index] for index in rng.integers(len(openings), size=plan.rows - from_given)]
    contexts = [markers.user + start for start in starts]
    turns = generate_batch(
        target, contexts, [1.0] * len(contexts), plan.question_tokens, generator, enough=0.95
    )
    written = [start + _without_end(turn, target) for start, turn in zip(starts, turns, strict=True)]
    return chosen + [question for question in written if question]


def _without_end(turn: list[int], target: Target) -> list[int]:
    return turn[:-1] if turn and turn[-1] in target.eos_ids else turn
