"""Ranking a prompt takes time of the prompts behind it: they share the positions that one has alone."""

from __future__ import annotations

import pytest

from evospec.config import EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.models.target import Target
from evospec.vocab.dynamic import DynamicVocabulary
from evospec.vocab.protocol import Ranked
from tests.unit.test_engine_sizes import FINGERPRINTS, drafter_of, target, vocabulary_of

__all__ = ["target"]

LENGTH = 40


@pytest.mark.parametrize(
    ("arriving", "positions"),
    [(1, [32]), (2, [16, 32]), (3, [10, 16, 32]), (6, [8, 8, 8, 10, 16, 32])],
    ids=["alone", "two", "three", "crowd"],
)
def test_prompts_that_begin_together_share_the_positions(
    target: Target, monkeypatch: pytest.MonkeyPatch, arriving: int, positions: list[int]
) -> None:
    told: dict[str, int] = {}

    def ranked(vocabulary: DynamicVocabulary, best: Ranked) -> None:
        for name, count in zip(best.request_ids, best.counts, strict=True):
            told.setdefault(name, count)

    monkeypatch.setattr(DynamicVocabulary, "ranked", ranked)
    engine = Engine(
        target,
        drafter_of(target),
        EngineConfig(max_batch=6, max_length=160, prefill_chunk=128),
        FINGERPRINTS,
        learners=Learners(vocabulary=vocabulary_of(target, 6, padded=False), ranked_k=4, prompt_ranked=32),
    )
    for number in range(arriving):
        engine.admit(Request(str(number), tuple(range(1, LENGTH + 1)), SamplingParams(max_tokens=4)))
    while engine.has_work:
        engine.step()
    assert [told[str(number)] for number in range(arriving)] == positions


def test_more_may_wait_than_there_are_slots_for(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(DynamicVocabulary, "ranked", lambda vocabulary, best: told.extend(best.counts))
    engine = Engine(
        target,
        drafter_of(target),
        EngineConfig(max_batch=1, max_length=160, prefill_chunk=128),
        FINGERPRINTS,
        learners=Learners(vocabulary=vocabulary_of(target, 1, padded=False), ranked_k=4, prompt_ranked=32),
    )
    for number in range(3):
        engine.admit(Request(str(number), tuple(range(1, LENGTH + 1)), SamplingParams(max_tokens=1)))
    while engine.has_work:
        engine.step()
    assert [count for count in told if count > 1] == [32, 32, 32]  # the others are of tokens
