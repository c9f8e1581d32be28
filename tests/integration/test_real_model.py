"""SmolLM2-135M with its shipped drafter: real weights, real text, the same tokens as transformers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from evospec.config import Config, EngineConfig, ModelConfig, VocabularyConfig
from evospec.engine.build import build_engine, load_own_drafter, load_target
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.models.chat import encode_prompt
from evospec.models.loading import resolve_target
from evospec.models.target import Target

NAME = "smollm2-135m"
NEW_TOKENS = 64
PROMPTS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Explain in two sentences what a force majeure clause does.",
    "List three causes of high blood pressure.",
    "Tell me a short story about a lighthouse keeper and a whale.",
    "What is 17 times 23?",
)


def config(max_batch: int) -> Config:
    return Config(
        model=ModelConfig(target=NAME, dtype="float32", device="cpu"),
        engine=EngineConfig(max_batch=max_batch, max_length=256),
        vocabulary=VocabularyConfig(capacity=2048),
    )


@pytest.fixture(scope="module")
def target() -> Target:
    torch.set_num_threads(2)
    return load_target(config(1))


@pytest.fixture(scope="module")
def prompts(target: Target) -> list[tuple[int, ...]]:
    return [tuple(encode_prompt(target.tokenizer, text, chat=True)) for text in PROMPTS]


@pytest.fixture(scope="module")
def references(prompts: list[tuple[int, ...]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(resolve_target(NAME), dtype=torch.float32)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@dataclass(frozen=True, slots=True)
class Decoded:
    """An engine that has answered all prompts, and its answers in order."""

    engine: Engine
    answers: list[list[int]]


@pytest.fixture(scope="module")
def decoded(target: Target, prompts: list[tuple[int, ...]]) -> Decoded:
    settings = config(3)
    engine = build_engine(settings, target, load_own_drafter(settings, target))
    for index, prompt in enumerate(prompts):
        engine.admit(Request(str(index), prompt, SamplingParams(max_tokens=NEW_TOKENS)))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            answers[int(output.request_id)] += output.tokens
    return Decoded(engine, answers)


def test_the_answers_are_those_of_generate(decoded: Decoded, references: list[list[int]]) -> None:
    assert decoded.answers == references
    assert decoded.engine.stats.vocabulary_epoch > 20


def test_the_shipped_drafter_drafts(decoded: Decoded) -> None:
    """Whatever it is worth exactly is for the bench to say; an unloaded or shifted one accepts nothing."""
    stats = decoded.engine.stats
    assert stats.drafts > 50
    assert stats.acceptance_length > 1.25
    assert stats.coverage > 0.8
    assert decoded.engine.take_traces()
