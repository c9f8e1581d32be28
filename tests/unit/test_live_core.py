"""A core that follows the cluster's traffic: counted by the aligner, brought by versions, used by engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evospec.config import EngineConfig, VocabularyConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.errors import WireError
from evospec.models.adapter import CORE, AdapterWeights
from evospec.models.adapter_slot import StagedAdapter
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.vocab.active import ActiveRows
from evospec.vocab.live_core import LiveCore
from evospec.vocab.policy import build_policy
from evospec.vocab.proposals import Origin
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target

VOCAB, EOS = 260, 256


def test_without_traffic_a_core_is_the_drafter_s_own() -> None:
    ranks = np.array([7, 3, 9, 1])
    assert LiveCore(ranks, 20, size=4).ranks().tolist() == [7, 3, 9, 1]
    # Tokens that were never seen follow in order of ids: those of merges made early.
    assert LiveCore(ranks, 20, size=7).ranks().tolist() == [7, 3, 9, 1, 0, 2, 4]


def test_what_traffic_uses_rises_as_far_as_it_has_spoken() -> None:
    core = LiveCore(np.arange(1000), 2000, size=1000)
    core.learn(np.full(2_000, 1500))
    early = core.ranks().tolist().index(1500)
    assert 0 < early < 1000
    core.learn(np.full(1_000_000, 1500))
    assert core.ranks()[0] == 1500
    assert core.ranks()[1:].tolist() == [token for token in range(1000) if token != 1500][:999]


def test_a_restarted_aligner_goes_on_from_the_last_version_s_ranks() -> None:
    core = LiveCore(np.arange(100), 200, size=50)
    core.learn(np.repeat(np.arange(150, 160), 20_000))
    again = LiveCore(np.arange(100), 200, size=50)
    again.begin_with(core.ranks())
    assert np.array_equal(again.ranks(), core.ranks())


@given(st.lists(st.lists(st.integers(0, 49), max_size=30), max_size=8))
def test_ranks_are_distinct_and_complete(batches: list[list[int]]) -> None:
    core = LiveCore(np.array([5, 4, 3]), 50, size=50)
    for batch in batches:
        core.learn(np.array(batch, dtype=np.int64))
    assert sorted(core.ranks().tolist()) == list(range(50))


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return tiny_drafter(target)


def test_a_version_brings_its_core(drafter: Drafter) -> None:
    ranks = torch.tensor([5, 2, 200], dtype=torch.int32)
    sent = AdapterWeights(3, {}, ranks)
    received = AdapterWeights.from_bytes(sent.to_bytes(), 3, drafter)
    assert received.core_ranks is not None
    assert torch.equal(received.core_ranks, ranks)
    assert received.tensors == {}
    assert AdapterWeights.from_bytes(AdapterWeights(4, {}).to_bytes(), 4, drafter).core_ranks is None


@pytest.mark.parametrize(
    "ranks",
    [
        torch.tensor([1, 2]),
        torch.tensor([[1, 2]], dtype=torch.int32),
        torch.tensor([], dtype=torch.int32),
        torch.tensor([1, -1], dtype=torch.int32),
        torch.tensor([1, VOCAB], dtype=torch.int32),
        torch.tensor([1, 1], dtype=torch.int32),
        torch.arange(VOCAB + 1, dtype=torch.int32),
        torch.tensor([1.0, 2.0]),
    ],
    ids=["int64", "two axes", "empty", "negative", "beyond the vocabulary", "twice", "too many", "floats"],
)
def test_a_core_of_anything_but_distinct_tokens_is_refused(ranks: torch.Tensor, drafter: Drafter) -> None:
    with pytest.raises(WireError, match=CORE):
        AdapterWeights.from_bytes(AdapterWeights(3, {}, ranks).to_bytes(), 3, drafter)


def build(target: Target, drafter: Drafter, capacity: int = 100) -> Engine:
    target.tap(drafter.config.tap_layers)
    settings = VocabularyConfig(policy="evospec", capacity=capacity, core=32)
    policy = build_policy(settings, drafter.tables(target.tables), np.arange(VOCAB), [EOS], 2)
    return Engine(
        target,
        drafter,
        EngineConfig(max_batch=2, max_length=128, drafting="chain", draft_length=4),
        Fingerprints(target="t", drafter="d", tokenizer="k"),
        learners=Learners(vocabulary=policy, ranked_k=4, prompt_ranked=8),
    )


def core_of(engine: Engine) -> set[int]:
    assert engine.vocabulary is not None
    return {slot.token_id for slot in engine.vocabulary.slots() if slot.origin is Origin.CORE}


def decode(engine: Engine, swaps: Mapping[int, StagedAdapter | AdapterWeights | None]) -> list[int]:
    """One request's text, with swaps before some of its steps."""
    engine.admit(Request("r", tuple(range(40, 80)), SamplingParams(max_tokens=60, ignore_eos=True)))
    text: list[int] = []
    step = 0
    while engine.has_work:
        if step in swaps:
            engine.swap_adapter(swaps[step])
        step += 1
        for output in engine.step():
            text += output.tokens
    return text


def test_a_running_engine_takes_another_core_and_the_old_one_back(target: Target, drafter: Drafter) -> None:
    undisturbed = decode(build(target, drafter), {})
    engine = build(target, drafter)
    before = core_of(engine)
    assert before == {*range(32), EOS}
    ranks = torch.arange(250, 150, -1, dtype=torch.int32)
    assert decode(engine, {2: AdapterWeights(1, {}, ranks)}) == undisturbed
    assert core_of(engine) >= {*range(219, 251), EOS}
    assert engine.vocabulary is not None
    assert engine.vocabulary.head().count <= 100
    engine.swap_adapter(None)
    engine.vocabulary.apply()
    assert core_of(engine) >= before
    pinned = {slot.token_id for slot in engine.vocabulary.slots() if slot.pins}
    assert pinned == before  # nothing of the other core is held


def test_a_version_with_the_core_in_force_changes_no_row(
    target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(target, drafter)
    changes: list[int] = []
    activate = ActiveRows.activate

    def noted(rows: ActiveRows, token_ids: np.ndarray, *how: Any) -> int:
        changes.append(len(token_ids))
        return activate(rows, token_ids, *how)

    monkeypatch.setattr(ActiveRows, "activate", noted)
    ranks = torch.arange(250, 150, -1, dtype=torch.int32)
    for version, brought in enumerate((None, ranks, ranks.clone(), None, None)):
        engine.swap_adapter(AdapterWeights(version, {}, brought))
    assert changes == [32, 32]  # there and back


def test_tokens_that_left_the_core_can_be_evicted(target: Target, drafter: Drafter) -> None:
    engine = build(target, drafter, capacity=64)
    engine.swap_adapter(AdapterWeights(1, {}, torch.arange(250, 150, -1, dtype=torch.int32)))
    decode(engine, {})
    assert engine.vocabulary is not None
    active = {slot.token_id for slot in engine.vocabulary.slots()}
    assert {*range(219, 251)} <= active
    assert len(active & set(range(32))) < 32
