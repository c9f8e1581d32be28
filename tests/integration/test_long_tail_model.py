"""Gemma 3 270M with its 262,144 tokens: real weights, random drafts, the tokens of transformers.

Runs where the weights are in the cache already: `python infra/offline_weights.py gemma3-270m`.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evospec.config import Config, EngineConfig, ModelConfig, VocabularyConfig
from evospec.engine.build import build_engine, load_target
from evospec.engine.request import Request, SamplingParams
from evospec.errors import UnsupportedModelError
from evospec.models.catalogue import BUILT_IN
from evospec.models.chat import encode_prompt
from evospec.models.decoder import DecoderBody
from evospec.models.drafter import Drafter
from evospec.models.drafter_store import LoadedDrafter
from evospec.models.loading import resolve_target
from evospec.models.offline import packaged_folder
from evospec.models.target import Target
from evospec.training.pipeline import drafter_config

NAME = "gemma3-270m"
NEW_TOKENS, ROWS = 12, 4096
SLIDING_WINDOW, LONGEST = 512, 1024
FACTS = (
    "The quick brown fox jumps over the lazy dog. In 1969, Neil Armstrong became the first person to walk "
    "on the Moon. Water boils at 100 degrees Celsius at sea level."
)
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Das Oberlandesgericht entschied über die Revision der Klägerin, weil",
    "The clause on force majeure frees a party from liability. " * 55,  # beyond the window
)

pytestmark = pytest.mark.skipif(
    not packaged_folder(BUILT_IN[NAME]).is_dir(), reason=f"the weights of {NAME} are not in the cache"
)


def config(policy: str) -> Config:
    return Config(
        model=ModelConfig(target=NAME, dtype="float32", device="cpu"),
        engine=EngineConfig(max_batch=3, max_length=LONGEST, drafting="chain", draft_length=3),
        vocabulary=VocabularyConfig(policy=policy, capacity=ROWS),
    )


@pytest.fixture(scope="module")
def target() -> Target:
    torch.set_num_threads(2)
    return load_target(config("full"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(resolve_target(NAME), dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(target: Target) -> list[tuple[int, ...]]:
    return [encode_prompt(target.tokenizer, text, chat=False) for text in PROMPTS]


@pytest.fixture(scope="module")
def references(model: PreTrainedModel, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="module")
def drafter(target: Target) -> LoadedDrafter:
    """One layer of the target's shape with random weights."""
    torch.manual_seed(0)
    made = Drafter(drafter_config(target, NAME, LONGEST)).requires_grad_(False).eval()
    target.tap(made.config.tap_layers)
    ranks = torch.arange(target.vocab_size)
    return LoadedDrafter(made, ranks, resolve_target(NAME))


def test_the_weights_are_those_of_a_model_that_reads(model: PreTrainedModel, target: Target) -> None:
    """A conversion that mistakes norms, scales or tokens ends far above this."""
    ids = torch.tensor([encode_prompt(target.tokenizer, FACTS, chat=False)])
    assert ids[0, 0] == model.config.bos_token_id
    with torch.inference_mode():
        assert float(model(ids, labels=ids).loss) < 2.5


def test_it_is_what_it_is_meant_to_be(target: Target, prompts: list[tuple[int, ...]]) -> None:
    tables = target.tables
    assert target.vocab_size == 262_144
    assert DecoderBody.knows(target.model)
    assert tables.head.data_ptr() == tables.embedding.data_ptr()
    assert target.eos_ids == {1}
    assert target.model.config.sliding_window == SLIDING_WINDOW
    assert SLIDING_WINDOW + 64 < len(prompts[-1]) < LONGEST - NEW_TOKENS
    token_ids = torch.tensor([[2, 818, 200_000]])
    torch.testing.assert_close(tables.embed(token_ids), target.model.get_input_embeddings()(token_ids))
    with pytest.raises(UnsupportedModelError, match="--no-chat"):  # it is the base model
        encode_prompt(target.tokenizer, PROMPTS[0], chat=True)


@pytest.mark.parametrize("policy", ["plain", "evospec"])
def test_the_answers_are_those_of_generate(
    target: Target,
    drafter: LoadedDrafter,
    prompts: list[tuple[int, ...]],
    references: list[list[int]],
    policy: str,
) -> None:
    loaded = None if policy == "plain" else drafter
    engine = build_engine(config("full" if loaded is None else policy), target, loaded)
    for index, prompt in enumerate(prompts):
        engine.admit(Request(str(index), prompt, SamplingParams(max_tokens=NEW_TOKENS)))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            answers[int(output.request_id)] += output.tokens
    assert answers == references
    if policy == "evospec":
        assert engine.stats.drafts > NEW_TOKENS
        assert 0 < engine.stats.active_rows <= ROWS
