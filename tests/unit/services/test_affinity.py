"""Domain-affine routing, simulated: topics find their replicas, and no replica is left with all the work."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.affinity import BLOCK, CELLS, MOST_BLOCKS, Affinity, Prompt, suited

TOPICS = 4
COMMON = list(range(200))


def prompt(topic: int, draws: random.Random) -> tuple[int, ...]:
    """Words that all topics use, and some of the topic's own."""
    own = range(1000 * (topic + 1), 1000 * (topic + 1) + 150)
    return tuple(draws.choices(COMMON, k=40) + draws.choices(own, k=30))


def simulate(replicas: int, requests: int, slack: int, seed: int, affine: bool = True) -> list[Counter[int]]:
    """Topics that each replica got; each request takes as long as 2 x replicas others to arrive."""
    draws = random.Random(seed)
    affinity = Affinity()
    names = [f"r{number}" for number in range(replicas)]
    loads = dict.fromkeys(names, 0)
    running: list[str] = []
    served = {name: Counter[int]() for name in names}
    for _ in range(requests):
        if len(running) == 2 * replicas:
            loads[running.pop(draws.randrange(len(running)))] -= 1
        topic = draws.randrange(TOPICS)
        one = Prompt.of(prompt(topic, draws))
        best = suited(affinity.scores(one, names), loads, slack) if affine else None
        name = best or min(draws.sample(names, 2), key=lambda each: loads[each])
        affinity.record(name, one)
        loads[name] += 1
        running.append(name)
        served[name][topic] += 1
    return list(served.values())


def purity(served: list[Counter[int]]) -> float:
    """Share of the requests that are of their topic's main replica."""
    topics = range(TOPICS)
    most = sum(max(counts[topic] for counts in served) for topic in topics)
    return most / sum(counts.total() for counts in served)


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_topics_find_a_replica_each(replicas: int, seed: int) -> None:
    affine = simulate(replicas, 400, slack=3, seed=seed)
    blind = simulate(replicas, 400, slack=3, seed=seed, affine=False)
    assert purity(affine) > purity(blind) + 0.15
    assert min(counts.total() for counts in affine) > 400 / replicas / 3  # nobody idles


def test_without_slack_load_alone_decides() -> None:
    served = simulate(2, 400, slack=0, seed=1)
    shares = [counts.total() / 400 for counts in served]
    assert min(shares) > 0.4


def test_a_shared_beginning_is_followed() -> None:
    affinity = Affinity()
    draws = random.Random(0)
    dialogue = tuple(draws.choices(COMMON, k=10 * BLOCK))
    affinity.record("b", Prompt.of(dialogue))
    affinity.record("a", Prompt.of(tuple(draws.choices(COMMON, k=10 * BLOCK))))
    scores = affinity.scores(Prompt.of((*dialogue, *draws.choices(COMMON, k=5))), ["a", "b"])
    assert suited(scores, {"a": 3, "b": 4}, slack=2) == "b"
    assert suited(scores, {"a": 3, "b": 9}, slack=2) == "a"


def test_replicas_that_are_gone_are_forgotten() -> None:
    affinity = Affinity()
    one = Prompt.of(range(100))
    affinity.record("gone", one)
    affinity.keep(["here"])
    assert affinity.scores(one, ["gone", "here"]) == {"gone": 0.0, "here": 0.0}


def test_a_single_replica_and_none() -> None:
    assert suited({}, {}, 2) is None
    assert suited({"a": -1.0}, {"a": 5}, 2) == "a"


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(-1, 2), st.integers(0, 30)), min_size=1),
    st.integers(0, 10),
)
def test_no_choice_is_busier_than_allowed(replicas: dict[str, tuple[float, int]], slack: int) -> None:
    scores = {name: score for name, (score, _) in replicas.items()}
    loads = {name: load for name, (_, load) in replicas.items()}
    best = suited(scores, loads, slack)
    if best is not None:
        assert loads[best] <= min(loads.values()) + slack


@given(st.lists(st.integers(0, 300_000), max_size=200))
def test_prompts_of_any_length_are_bounded(token_ids: list[int]) -> None:
    one = Prompt.of(token_ids)
    assert len(one.blocks) == len(token_ids) // BLOCK
    assert np.array_equal(one.cells, np.unique(one.cells))
    assert not one.cells.size or 0 <= one.cells[0] <= one.cells[-1] < CELLS
    affinity = Affinity()
    affinity.record("a", one)
    assert -1.001 <= affinity.scores(one, ["a"])["a"] <= 2.001


def test_memory_is_bounded() -> None:
    affinity = Affinity()
    draws = random.Random(0)
    for _ in range(40):
        affinity.record("a", Prompt.of(draws.choices(range(10_000), k=BLOCK * 300)))
    assert len(affinity._served["a"].blocks) == MOST_BLOCKS
