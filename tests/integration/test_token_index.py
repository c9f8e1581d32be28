"""The token index on the real qdrant-client: embedded, and by URL against `qdrant_rest`."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from evospec.wire import IndexPoint
from services.token_index import DUPLICATE_COSINE, QdrantTokenIndex, open_token_index
from tests.integration.qdrant_rest import Qdrant
from tests.integration.token_index_kit import DIM, TARGET, axis, point, random_points

Open = Callable[..., QdrantTokenIndex]


@pytest.fixture(params=["embedded", "server"])
def open_index(request: pytest.FixtureRequest, qdrant: Qdrant) -> Iterator[Open]:
    """Opens indexes of one kind; settings of SemanticConfig as keywords."""
    opened: list[QdrantTokenIndex] = []
    url = qdrant.url if request.param == "server" else None

    def open_(dim: int = DIM, target: str = TARGET, **settings: int) -> QdrantTokenIndex:
        index = open_token_index(SemanticConfig(url=url, **settings), target, dim)
        opened.append(index)
        return index

    yield open_
    for index in opened:
        index.close()


def test_empty_index_has_no_hits(open_index: Open) -> None:
    index = open_index()
    hits = index.search(np.stack([axis(0), axis(1)]), "a", 8)
    assert [(found.token_ids, found.weights) for found in hits] == [((), ()), ((), ())]
    assert index.search(np.zeros((0, DIM), np.float32), "a", 8) == []
    assert index.count() == 0


def test_hits_sum_the_neighbours_weights_scaled_by_similarity(open_index: Open) -> None:
    index = open_index()
    near = axis(0, towards=1, cosine=0.8)
    index.write([point(axis(0), {5: 1.0, 6: 2.0}), point(near, {6: 1.0, 7: 4.0}), point(axis(2), {9: 8.0})])
    (hits,) = index.search(axis(0)[None], "a", 2)
    # 7: 0.8 * 4; 6: 1 * 2 + 0.8 * 1; 5: 1 * 1; the point at a right angle is no neighbour of 2.
    assert hits.token_ids == (7, 6, 5)
    assert hits.weights == pytest.approx((3.2, 2.8, 1.0), abs=1e-5)


def test_each_query_of_a_batch_gets_its_own_hits(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(number), {number: 1.0}) for number in range(4)])
    hits = index.search(np.stack([axis(3), axis(1), axis(2)]), "a", 1)
    assert [found.token_ids for found in hits] == [(3,), (1,), (2,)]


def test_the_latest_points_come_newest_first_whosever_they_are(open_index: Open) -> None:
    index = open_index()
    assert index.latest(4) == []
    for number, tenant in enumerate(["a", "b", "a"]):
        index.write([point(axis(number), {number: 1.0}, tenant)])
    first, second = index.latest(2)
    assert [(found.token_ids, found.tenant) for found in (first, second)] == [((2,), "a"), ((1,), "b")]
    assert first.vector == pytest.approx(axis(2))


def test_points_opposite_to_the_query_add_nothing(open_index: Open) -> None:
    index = open_index()
    index.write([point(-axis(0), {1: 1.0}), point(axis(0, towards=1, cosine=0.1), {2: 1.0})])
    (hits,) = index.search(axis(0)[None], "a", 8)
    assert hits.token_ids == (2,)


def test_tenants_never_see_each_other(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(0), {1: 1.0}, "a"), point(axis(0), {2: 1.0}, "b"), point(axis(0), {3: 1.0}, "")])
    found = {tenant: index.search(axis(0)[None], tenant, 8)[0].token_ids for tenant in ("a", "b", "", "c")}
    assert found == {"a": (1,), "b": (2,), "": (3,), "c": ()}
    assert index.count() == 3


def test_targets_and_dimensions_have_collections_of_their_own(qdrant: Qdrant) -> None:
    config = SemanticConfig(url=qdrant.url)
    with (
        closing(open_token_index(config, TARGET, DIM)) as one,
        closing(open_token_index(config, "sha256:target-b", DIM)) as other,
        closing(open_token_index(config, TARGET, 64)) as wider,
    ):
        one.write([point(axis(0), {1: 1.0})])
        other.write([point(axis(0), {2: 1.0}, target="sha256:target-b")])
        wider.write(random_points(3))
        assert one.search(axis(0)[None], "a", 8)[0].token_ids == (1,)
        assert other.search(axis(0)[None], "a", 8)[0].token_ids == (2,)
        assert (one.count(), other.count(), wider.count()) == (1, 1, 3)


def test_similar_contexts_share_one_point(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(0), {1: 1.0, 2: 3.0})])
    index.write([point(axis(0, towards=1, cosine=DUPLICATE_COSINE + 0.005), {2: 1.0, 3: 1.0})])
    assert index.count() == 1
    (hits,) = index.search(axis(0)[None], "a", 8)
    assert hits.token_ids == (2, 1, 3)
    assert hits.weights == pytest.approx((2.0, 0.5, 0.5), abs=1e-5)  # the mean of both
    index.write([point(axis(0, towards=1, cosine=DUPLICATE_COSINE - 0.01), {4: 1.0})])
    assert index.count() == 2


def test_similar_contexts_of_one_write_share_one_point(open_index: Open) -> None:
    index = open_index()
    close = axis(0, towards=1, cosine=0.995)
    index.write([point(axis(0), {1: 2.0}), point(close, {2: 2.0}), point(close, {3: 1.0}, tenant="b")])
    assert index.count() == 2
    (hits,) = index.search(axis(0)[None], "a", 8)
    assert hits.token_ids == (1, 2)
    assert hits.weights == pytest.approx((1.0, 1.0), abs=1e-5)


def test_two_new_contexts_merge_into_one_stored_point(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(0), {1: 3.0})])
    left, right = axis(0, 1, cosine=0.992), axis(0, 2, cosine=0.992)  # 0.984 apart: no duplicates
    index.write([point(left, {2: 3.0}), point(right, {3: 3.0})])
    assert index.count() == 1
    (hits,) = index.search(axis(0)[None], "a", 1)
    assert dict(zip(hits.token_ids, hits.weights, strict=True)) == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0})


def test_a_point_keeps_its_heaviest_tokens(open_index: Open) -> None:
    index = open_index(tokens_per_point=2)
    index.write([point(axis(0), {1: 1.0, 2: 3.0, 3: 2.0})])
    assert index.search(axis(0)[None], "a", 1)[0].token_ids == (2, 3)
    index.write([point(axis(0), {4: 9.0})])
    assert index.search(axis(0)[None], "a", 1)[0].token_ids == (4, 2)


def test_a_look_up_yields_the_heaviest_tokens_only(open_index: Open) -> None:
    index = open_index(tokens_per_lookup=2)
    index.write([point(axis(0), {1: 1.0, 2: 3.0, 3: 2.0})])
    assert index.search(axis(0)[None], "a", 1)[0].token_ids == (2, 3)


def test_a_query_of_any_length_finds_the_same(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(0, towards=1, cosine=0.8), {1: 1.0})])
    (hits,) = index.search(10 * axis(0)[None], "a", 1)
    assert hits.weights == pytest.approx((0.8,), abs=1e-5)


def test_points_without_tokens_are_left_out(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(0), {})])
    assert index.count() == 0


def test_the_oldest_points_make_room(open_index: Open) -> None:
    index = open_index(max_points=3)
    for number in range(3):
        index.write([point(axis(number), {number: 1.0})])
    index.write([point(axis(0), {0: 1.0})])  # renewed: 1 is the oldest now
    index.write([point(axis(3), {3: 1.0}, tenant="b")])
    assert index.count() == 3
    assert set(index.search(axis(0)[None], "a", 8)[0].token_ids) == {0}
    assert index.search(axis(1)[None], "a", 8)[0].token_ids == ()
    assert index.search(axis(2)[None], "a", 8)[0].token_ids == (2,)
    assert index.search(axis(3)[None], "b", 8)[0].token_ids == (3,)


def test_many_writes_stay_within_bounds(open_index: Open) -> None:
    index = open_index(dim=64, max_points=100)
    points = random_points(350)
    for start in range(0, 350, 35):
        index.write(points[start : start + 35])
        assert index.count() <= 100
    assert index.count() >= 90
    (hits,) = index.search(points[-1].vector[None], "a", 1)
    assert hits.token_ids == (349,)


def test_a_write_larger_than_the_index_keeps_its_end(open_index: Open) -> None:
    index = open_index(dim=64, max_points=4)
    points = random_points(9)
    index.write(points)
    assert index.count() <= 4
    assert index.search(points[-1].vector[None], "a", 1)[0].token_ids == (8,)


def test_threads_write_and_search_at_once(open_index: Open) -> None:
    index = open_index(dim=64, max_points=1000)
    points = random_points(96)

    def work(start: int) -> int:
        index.write(points[start : start + 12])
        return len(index.search(points[start].vector[None], "a", 1)[0].token_ids)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(0, 96, 12))) == [1] * 8
    assert index.count() == 96


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (point(axis(0), {1: 1.0}, target="sha256:other"), "sha256:other"),
        (point(np.ones(DIM + 1, np.float32), {1: 1.0}), "size 8"),
        (point(np.full(DIM, np.nan, np.float32), {1: 1.0}), "not finite"),
        (point(np.zeros(DIM, np.float32), {1: 1.0}), "zero"),
        (point(axis(0), {1: -1.0}), "not positive"),
        (point(axis(0), {1: float("nan")}), "not positive"),
        (point(axis(0), {-1: 1.0}), "negative token id"),
        (IndexPoint(axis(0), (1, 2), (1.0,), "a", TARGET), "2 token ids but 1 weights"),
    ],
)
def test_wrong_points_are_refused_before_anything_is_written(
    open_index: Open, wrong: IndexPoint, message: str
) -> None:
    index = open_index()
    with pytest.raises(TokenIndexError, match=message):
        index.write([point(axis(1), {1: 1.0}), wrong])
    assert index.count() == 0


def test_wrong_queries_are_refused(open_index: Open) -> None:
    index = open_index()
    for vectors in (axis(0), np.ones((1, DIM + 1), np.float32), np.full((1, DIM), np.inf, np.float32)):
        with pytest.raises(TokenIndexError):
            index.search(vectors, "a", 8)


def test_a_closed_index_says_so(open_index: Open) -> None:
    index = open_index()
    index.write([point(axis(0), {1: 1.0})])
    index.close()
    with pytest.raises(TokenIndexError, match="closed"):
        index.search(axis(0)[None], "a", 8)


def test_factory_pickles(qdrant: Qdrant) -> None:
    factory = functools.partial(open_token_index, SemanticConfig(url=qdrant.url), TARGET, DIM)
    with closing(ForkingPickler.loads(ForkingPickler.dumps(factory))()) as index:
        index.write([point(axis(0), {1: 1.0})])
        assert index.count() == 1


# --- embedded -----------------------------------------------------------------------------


def test_calls_of_the_embedded_client_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, overlaps = threading.Lock(), 0

    def alone(call: Callable[..., object]) -> Callable[..., object]:
        def checked(*args: object, **kwargs: object) -> object:
            nonlocal overlaps
            if not turn.acquire(blocking=False):
                overlaps += 1
                return call(*args, **kwargs)
            try:
                time.sleep(0.002)  # long enough for another thread to get in
                return call(*args, **kwargs)
            finally:
                turn.release()

        return checked

    for name in ("query_batch_points", "upsert", "count"):
        monkeypatch.setattr(QdrantClient, name, alone(getattr(QdrantClient, name)))
    points = random_points(32)
    with closing(open_token_index(SemanticConfig(), TARGET, 64)) as index, ThreadPoolExecutor(8) as pool:
        for point_ in points:
            pool.submit(index.write, [point_])
            pool.submit(index.search, point_.vector[None], "a", 1)
        pool.shutdown()
        assert index.count() == 32
    assert overlaps == 0


def test_a_folder_keeps_the_embedded_index(tmp_path: Path) -> None:
    config = SemanticConfig(path=str(tmp_path / "index"), max_points=3)
    with closing(open_token_index(config, TARGET, DIM)) as index:
        for number in range(5):
            index.write([point(axis(number), {number: 1.0}, tenant="ab"[number % 2])])
    with closing(open_token_index(config, TARGET, DIM)) as index:
        assert index.count() == 3
        assert index.search(axis(4)[None], "a", 1)[0].token_ids == (4,)
        index.write([point(axis(5), {5: 1.0}, tenant="b")])  # the oldest, 2, makes room
        assert index.count() == 3
        assert index.search(axis(2)[None], "a", 1)[0].token_ids == ()
        assert index.search(axis(3)[None], "b", 1)[0].token_ids == (3,)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    config = SemanticConfig(path=str(tmp_path / "index"))
    with (
        closing(open_token_index(config, TARGET, DIM)),
        pytest.raises(TokenIndexError, match="already accessed"),
    ):
        open_token_index(config, TARGET, DIM)


def test_a_folder_open_to_everyone_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(TokenIndexError, match="chmod o-w"):
        open_token_index(SemanticConfig(path=str(tmp_path)), TARGET, DIM)


def test_rows_of_removed_points_are_used_again() -> None:
    """The embedded client never frees a row: a full index must get by with those it has."""
    ids: set[int | str] = set()
    with closing(open_token_index(SemanticConfig(max_points=64), TARGET, 64)) as index:
        points = random_points(640)
        for start in range(0, 640, 16):
            index.write(points[start : start + 16])
            (name,) = index._names()
            ids.update(found.id for found in index._store.oldest(name, 1000))
    assert len(ids) <= 64


# --- by URL -------------------------------------------------------------------------------


def test_server_queries_filter_by_tenant_and_target(qdrant: Qdrant) -> None:
    with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        index.search(np.stack([axis(0), axis(1)]), "a", 8)
    assert qdrant.indexed == ["tenant", "target", "time"]
    queries = [body["searches"] for route, body in qdrant.requests if route == "POST points/query/batch"]
    assert [len(searches) for searches in queries] == [1, 2]  # a batch is one request
    for searches in queries:
        for query in searches:
            conditions = {item["key"]: item["match"]["value"] for item in query["filter"]["must"]}
            assert conditions == {"tenant": "a", "target": TARGET}


def test_a_collection_of_another_shape_is_refused(qdrant: Qdrant) -> None:
    with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        (name,) = index._names()
        qdrant.client.delete_collection(name)
        qdrant.client.create_collection(name, models.VectorParams(size=3, distance=models.Distance.COSINE))
    with (
        closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index,
        pytest.raises(TokenIndexError, match=r"vectors of size 8 .* semantic\.collection"),
    ):
        index.write([point(axis(0), {1: 1.0})])


def test_a_collection_that_vanished_is_made_again(qdrant: Qdrant) -> None:
    with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
        index.write([point(axis(0), {1: 1.0})])
        (name,) = index._names()
        qdrant.client.delete_collection(name)
        with pytest.raises(TokenIndexError, match="404"):
            index.search(axis(0)[None], "a", 8)
        assert index.search(axis(0)[None], "a", 8)[0].token_ids == ()
        index.write([point(axis(0), {2: 1.0})])
        assert index.search(axis(0)[None], "a", 8)[0].token_ids == (2,)


def test_two_writers_may_create_the_collection_at_once(qdrant: Qdrant) -> None:
    barrier = threading.Barrier(4)

    def write(number: int) -> None:
        with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
            barrier.wait(30)
            index.write([point(axis(number), {number: 1.0})])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with closing(open_token_index(SemanticConfig(url=qdrant.url), TARGET, DIM)) as index:
        assert index.count() == 4
