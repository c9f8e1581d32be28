"""Rows refilled while others write give what each prompt gives alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from evospec.models.target import Target
from evospec.training.conversations import RolloutPlan, TurnMarkers, write_conversations
from evospec.training.rollout import _PREFILL_TOKENS, _RUN_TOKENS, Continuation, Prompt, Rollout, _groups
from evospec.training.seeds import Seeds
from tests.tiny import tiny_model, tiny_target

EOS = 256


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """The same model with transformers' own attention."""
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    return model


def greedy(model: LlamaForCausalLM, prompt: Sequence[int], limit: int) -> list[int]:
    """The plainest decoding there is: the whole text again for every token."""
    tokens = list(prompt)
    for _ in range(limit):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def some_prompts(count: int) -> list[Prompt[int]]:
    torch.manual_seed(0)
    sizes = [1, 2, 7, 30, 64, 5, 19, 3, 11, 40]
    return [
        Prompt(torch.randint(0, 250, (sizes[number % 10],)).tolist(), 0.0, 5 + 7 * (number % 4), number)
        for number in range(count)
    ]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_greedy_rows_equal_plain_decoding(target: Target, reference: LlamaForCausalLM, rows: int) -> None:
    prompts = some_prompts(10)
    rollout: Rollout[int] = Rollout(target, rows, positions=100, longest=26, seed=0)
    results = {result.prompt.owner: result.tokens for result in rollout.generate(iter(prompts))}
    assert rollout.busy == 0
    assert results == {prompt.owner: greedy(reference, prompt.tokens, prompt.limit) for prompt in prompts}


def endless(waiting: list[Prompt[int]]) -> Iterator[Prompt[int]]:
    while waiting:
        yield waiting.pop()


def test_prompts_may_depend_on_what_was_written(target: Target) -> None:
    """Each result's last token begins the next prompt: rows wait for nothing else."""
    waiting = [Prompt([number], 0.0, 4, 0) for number in (10, 20)]
    chains: list[Continuation[int]] = []
    rollout: Rollout[int] = Rollout(target, 2, positions=16, longest=4, seed=0)
    for result in rollout.generate(endless(waiting)):
        chains.append(result)
        if result.prompt.owner < 3:
            waiting.append(Prompt([result.tokens[-1]], 0.0, 4, result.prompt.owner + 1))
    assert sorted(result.prompt.owner for result in chains) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_sampled_rows_differ_by_seed_and_end_at_their_limit(target: Target) -> None:
    prompts = [Prompt([5, 6], 1.0, 9, number) for number in range(4)]

    def run(seed: int) -> list[list[int]]:
        rollout: Rollout[int] = Rollout(target, 4, positions=16, longest=9, seed=seed)
        return [result.tokens for result in rollout.generate(iter(prompts))]

    first = run(1)
    assert first == run(1) != run(2)
    assert all(len(tokens) == 9 or tokens[-1] in target.eos_ids for tokens in first)


def test_unfinished_rows_are_given_back_as_far_as_they_got(
    target: Target, reference: LlamaForCausalLM
) -> None:
    prompts = [Prompt([5, 6], 0.0, 60, 0), Prompt([7], 0.0, 3, 1)]
    rollout: Rollout[int] = Rollout(target, 2, positions=80, longest=60, seed=0)
    for result in rollout.generate(iter(prompts)):
        assert result.prompt.owner == 1
        break
    (rest,) = rollout.unfinished()
    expected = greedy(reference, [5, 6], 60)
    assert 0 < len(rest.tokens) < len(expected)
    assert rest.tokens == expected[: len(rest.tokens)]
    assert rollout.busy == 0


def test_conversations_are_questions_tasks_and_prompts_with_answers(target: Target) -> None:
    seeds = Seeds(openings=("", "Why"), prompts=("What is it?",), tasks=("Sum up: {passage}",))
    plan = RolloutPlan(
        rows=4, question_tokens=6, answer_tokens=12, passage_tokens=20, shortest_answer=2, conversations=40
    )
    reports: list[float] = []
    documents = write_conversations(target, seeds, plan, lambda _, share: reports.append(share))
    assert len(documents) >= 40
    assert reports[-1] == 1.0
    assert reports == sorted(reports)
    markers = TurnMarkers.of(target)
    questions = []
    for document in documents:
        context = document.tokens[: document.answer].tolist()
        assert context[: len(markers.user)] == markers.user
        assert context[-len(markers.assistant) :] == markers.assistant
        assert 2 <= len(document.tokens) - document.answer <= 12
        questions.append(target.tokenizer.decode(context[len(markers.user) : -len(markers.assistant)]))
    assert "What is it?" in questions
    assert any(question.startswith("Sum up: ") for question in questions)
    assert any(question.startswith("Why") for question in questions)


def test_markers_are_what_the_template_puts_around_turns(target: Target) -> None:
    markers = TurnMarkers.of(target)
    text = target.tokenizer.decode([*markers.user, *target.tokenizer.encode("hi"), *markers.assistant])
    assert text == "<|user|>hi<|end|><|assistant|>"


@given(st.lists(st.integers(1, 1_000), max_size=200))
def test_prompts_are_run_with_others_of_about_their_length(lengths: list[int]) -> None:
    lengths.sort()
    runs = [lengths[run] for run in _groups(lengths)]
    assert [length for run in runs for length in run] == lengths
    for run in runs:
        assert len(run) * run[-1] - sum(run) <= _RUN_TOKENS
        assert len(run) == 1 or len(run) * run[-1] <= _PREFILL_TOKENS
    for run, after in pairwise(runs):
        joined = [*run, after[0]]
        padding = len(joined) * joined[-1] - sum(joined)
        assert padding > _RUN_TOKENS or len(joined) * joined[-1] > _PREFILL_TOKENS
