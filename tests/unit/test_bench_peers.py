"""transformers' own generation as arms of a bench."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evospec.bench.arms import parse_arms
from evospec.bench.measure import Batch, EngineArm, Turn
from evospec.bench.memory import PeakMemory
from evospec.bench.peers import PeerArm, load_assistant, twin
from evospec.config import EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.engine.retrieval import RetrievalPump
from evospec.errors import EvoSpecError
from evospec.models.target import Target
from evospec.vocab.memory_index import MemoryIndex
from evospec.wire import Fingerprints
from tests.tiny import tiny_folders, tiny_model, tiny_target

MEMORY = PeakMemory(torch.device("cpu"))
POSITIONS = 64


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def peer(target: Target, text: str, assistant: PreTrainedModel | None = None) -> PeerArm:
    (_, name) = parse_arms([text], "auto")
    return PeerArm(name, twin(target.model), target.eos_ids, POSITIONS, assistant)


def plain(target: Target, batch: Batch) -> Turn:
    settings = EngineConfig(max_batch=len(batch.requests), max_length=POSITIONS)
    engine = Engine(target, None, settings, Fingerprints(target="", drafter="", tokenizer=""))
    (name,) = parse_arms([], "auto")
    return EngineArm(name, engine, RetrievalPump(engine, MemoryIndex(8), 4)).run(batch, MEMORY)


def batch_of(*prompts: tuple[int, ...]) -> Batch:
    sampling = SamplingParams(max_tokens=16)
    return Batch(0, "law", tuple(Request(str(row), prompt, sampling) for row, prompt in enumerate(prompts)))


@pytest.mark.parametrize("text", ["transformers", "transformers:static", "transformers:prompt-lookup"])
def test_peers_emit_what_plain_decoding_does(target: Target, text: str) -> None:
    arm = peer(target, text)
    for prompt in ((1, 2, 3, 1, 2, 3, 1), (9, 8), (70, 71, 72, 73)):
        turn = arm.run(batch_of(prompt), MEMORY)
        assert turn.outputs == plain(target, batch_of(prompt)).outputs
        assert turn.arm == text
        assert 0 < turn.prompt_seconds < turn.seconds
        assert turn.first_tokens >= 1
        assert turn.counters.acceptance_length >= 1.0


def test_a_model_drafts_for_another(target: Target) -> None:
    # The target itself as assistant: all that it drafts stands.
    arm = peer(target, "transformers:assisted", twin(target.model))
    turn = arm.run(batch_of((1, 2, 3)), MEMORY)
    assert turn.outputs == plain(target, batch_of((1, 2, 3))).outputs
    assert turn.counters.acceptance_length > 1.5
    assert turn.request_cycles == turn.counters.cycles < 8


@pytest.mark.parametrize("text", ["transformers", "transformers:static"])
def test_prompts_of_different_lengths_are_decoded_together(target: Target, text: str) -> None:
    batch = batch_of((1, 2, 3, 4, 5, 6), (40,), (50, 51))
    turn, reference = peer(target, text).run(batch, MEMORY), plain(target, batch)
    assert turn.outputs == reference.outputs
    assert turn.first_tokens == 3
    assert turn.request_cycles == reference.request_cycles


def test_output_ends_where_the_target_does(target: Target) -> None:
    batch = batch_of((1, 2, 3), (4, 5, 6))
    full = plain(target, batch).outputs
    # A token of the first answer alone, made an end-of-sequence token: the other row goes on.
    place, token = next((place, token) for place, token in enumerate(full[0]) if token not in full[1])
    assert place < len(full[0]) - 1
    stopping = replace(peer(target, "transformers"), eos_ids=frozenset({token}))
    turn = stopping.run(batch, MEMORY)
    assert turn.outputs == (full[0][: place + 1], full[1])


def test_the_twin_shares_every_weight(target: Target) -> None:
    copy = twin(target.model)
    assert copy.config._attn_implementation == "sdpa"
    assert target.model.config._attn_implementation == "evospec"
    assert {id(weight) for weight in copy.parameters()} == {
        id(weight) for weight in target.model.parameters()
    }
    assert not [name for name, tensor in copy.state_dict().items() if tensor.is_meta]


def test_an_assistant_with_other_tokens_is_refused(target: Target, tmp_path: Path) -> None:
    folders = tiny_folders(tmp_path)
    assert load_assistant(str(folders.target), target).config.vocab_size == target.vocab_size
    other = tmp_path / "other"
    tiny_model(vocab=300).save_pretrained(other)
    target.tokenizer.save_pretrained(other)
    with pytest.raises(EvoSpecError, match="does not share the target's tokenizer"):
        load_assistant(str(other), target)
