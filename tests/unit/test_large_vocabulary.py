"""A vocabulary of 262,144 tokens, as Gemma 3 has it, drafted over a few hundred of its rows."""

from __future__ import annotations

import numpy as np
import pytest

from evospec.config import EngineConfig, VocabularyConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.models.target import Target
from evospec.vocab.policy import build_policy
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target

VOCAB, EOS = 262_144, 256
REQUESTS = [
    Request("low", tuple(range(40, 60)), SamplingParams(max_tokens=24, ignore_eos=True)),
    Request("high", tuple(range(VOCAB - 20, VOCAB)), SamplingParams(max_tokens=24, ignore_eos=True)),
    Request("sampled", (5, 200_000), SamplingParams(max_tokens=24, temperature=1.0, seed=3, ignore_eos=True)),
]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(vocab=VOCAB)


def decode(target: Target, *, drafts: bool) -> dict[str, list[int]]:
    drafter = tiny_drafter(target) if drafts else None
    vocabulary = None
    if drafter is not None:
        target.tap(drafter.config.tap_layers)
        settings = VocabularyConfig(policy="evospec", capacity=512, core=64)
        tables = drafter.tables(target.tables)
        vocabulary = build_policy(settings, tables, np.arange(1000), [EOS], max_batch=3)
    engine = Engine(
        target,
        drafter,
        EngineConfig(max_batch=3, max_length=128),
        Fingerprints(target="t", drafter="d", tokenizer="k"),
        learners=Learners(vocabulary=vocabulary, ranked_k=4, prompt_ranked=8),
    )
    for request in REQUESTS:
        engine.admit(request)
    texts: dict[str, list[int]] = {request.id: [] for request in REQUESTS}
    while engine.has_work:
        for output in engine.step():
            texts[output.request_id] += output.tokens
    if vocabulary is not None:
        assert engine.stats.drafts > 0
        assert vocabulary.head().count <= 512
        assert {slot.token_id for slot in vocabulary.slots()} & set(texts["low"])
    return texts


def test_drafts_over_few_rows_change_nothing(target: Target) -> None:
    plain = decode(target, drafts=False)
    assert max(max(text) for text in plain.values()) > 100_000  # the whole range is in play
    assert decode(target, drafts=True) == plain
