"""The map of recent traffic."""

from __future__ import annotations

import numpy as np

from evospec.wire import IndexPoint
from services.live.topics import TopicMap

DIM = 24
WORDS = {1: " plaintiff", 2: " dosage", 3: " the", 4: " x", 5: " 42"}


def contexts(seed: int = 0, count: int = 60) -> list[IndexPoint]:
    """Two topics that lie apart; each has a word of its own and shares the others."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((2, DIM))
    found = []
    for number in range(count):
        topic = number % 2
        vector = centres[topic] + 0.2 * rng.standard_normal(DIM)
        vector = (vector / np.linalg.norm(vector)).astype(np.float32)
        found.append(IndexPoint(vector, (topic + 1, 3, 4, 5), (2.0, 2.0, 2.0, 2.0), "", "t"))
    return found


def test_topics_are_told_apart_and_named_by_what_only_they_use() -> None:
    drawn = TopicMap(WORDS.__getitem__).draw(contexts())
    assert [topic["size"] for topic in drawn["topics"]] == [30, 30]
    assert {topic["words"][0] for topic in drawn["topics"]} == {"plaintiff", "dosage"}
    assert all(word.isalpha() and len(word) > 2 for topic in drawn["topics"] for word in topic["words"])
    topics = [point["topic"] for point in drawn["points"]]
    assert len(set(topics[::2])) == len(set(topics[1::2])) == 1
    assert topics[0] != topics[1]
    assert all(-1 <= point["x"] <= 1 and -1 <= point["y"] <= 1 for point in drawn["points"])
    assert drawn["points"][0]["age"] == 0
    assert drawn["points"][-1]["age"] == 1


def test_the_picture_stays_where_it_was() -> None:
    topic_map = TopicMap(WORDS.__getitem__)
    first = topic_map.draw(contexts(seed=1))["points"]
    for seed in range(2, 6):
        later = topic_map.draw(contexts(seed=seed))["points"]
        for one, other in zip(first[:2], later[:2], strict=True):
            assert np.sign(one["x"]) == np.sign(other["x"])
            assert abs(one["x"] - other["x"]) < 0.5


def test_too_few_points_are_no_map() -> None:
    assert TopicMap(str).draw(contexts(count=2)) == {"points": [], "topics": [], "count": 2}


def test_equal_points_lie_on_one_spot() -> None:
    drawn = TopicMap(WORDS.__getitem__).draw([contexts(count=1)[0]] * 8)
    assert {(point["x"], point["y"]) for point in drawn["points"]} <= {(0.0, 0.0), (-0.0, -0.0)}
