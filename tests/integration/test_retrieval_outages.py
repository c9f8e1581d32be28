"""A token index that is dead, slow or answers errors adds nothing to a request.

What a request costs is counted in what it made the engine do: its cycles, its tokens and the rows that
were written for it must be those of an engine that retrieves nothing.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest

from actors.breaker import CircuitBreaker
from actors.emission import Emission
from actors.engine_loop import EngineLoop, Outlets
from actors.index_client import IndexClient
from actors.index_host import IndexHost
from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    SemanticConfig,
    VocabularyConfig,
)
from evospec.engine.build import load_engine
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError
from evospec.wire import IndexPoint, TokenHits
from services.token_index import open_token_index
from tests.integration.qdrant_rest import Qdrant, reply
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.actors.fakes import wait_until

NEW_TOKENS = 24
REFRESH_TOKENS = 8
PROMPTS = [tuple(range(start, start + 40)) for start in (20, 60, 100, 140)]


@dataclass
class Clock:
    """The breaker's time, which passes when the test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class HostThread:
    """An index host as an actor runs it: one call at a time, in the order of the calls."""

    def __init__(self, host: IndexHost) -> None:
        self._host = host
        self._thread = ThreadPoolExecutor(1)

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> Future[list[TokenHits]]:
        return self._thread.submit(self._host.search, vectors, tenant, limit)

    def write(self, points: Sequence[IndexPoint]) -> Future[None]:
        return self._thread.submit(self._host.write, list(points))

    def settle(self) -> None:
        """Waits for the calls made so far."""
        self._thread.submit(lambda: None).result(60)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._host.close()


@dataclass
class Answer:
    """What one request was given."""

    tokens: list[int] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)

    def __call__(self, item: Emission | EvoSpecError) -> None:
        assert isinstance(item, Emission), item
        self.tokens += item.output.tokens
        if item.output.finish_reason is not None:
            self.finished.set()


@dataclass(frozen=True)
class Work:
    """What requests came to: their tokens, the cycles run and the rows written."""

    tokens: list[list[int]]
    cycles: int
    rows: int


def settle(loop: EngineLoop, engine: Engine) -> None:
    """Waits until all that requests left to learn from is learned: the next one would come before it."""
    wait_until(lambda: not engine.has_work and loop.stats() == engine.stats)


def decode(loop: EngineLoop, engine: Engine, name: str) -> Work:
    """Each prompt in turn."""
    before = loop.stats()
    written = []
    for number, prompt in enumerate(PROMPTS):
        answer = Answer()
        sampling = SamplingParams(max_tokens=NEW_TOKENS)
        loop.admit(Request(f"{name}-{number}", prompt, sampling), answer)
        assert answer.finished.wait(60), "the request did not finish"
        written.append(answer.tokens)
        settle(loop, engine)
    after = loop.stats()
    rows = after.vocabulary_rows_changed - before.vocabulary_rows_changed
    return Work(written, after.cycles - before.cycles, rows)


@dataclass
class Replica:
    """An engine that may retrieve, as a decoding replica has it."""

    loop: EngineLoop
    engine: Engine
    client: IndexClient
    index: HostThread

    def decode(self, name: str) -> Work:
        return decode(self.loop, self.engine, name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


def config(folders: TinyFolders, semantic: SemanticConfig) -> Config:
    return Config(
        model=ModelConfig(
            target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32"
        ),
        engine=EngineConfig(max_batch=2, max_length=128, drafting="chain", draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32),
        semantic=semantic,
        alignment=AlignmentConfig(enabled=False),
    )


@contextmanager
def retrieving(
    folders: TinyFolders, url: str, clock: Clock | None = None, deadline_s: float = 0.2
) -> Iterator[Replica]:
    settings = SemanticConfig(url=url, refresh_tokens=REFRESH_TOKENS, deadline_s=deadline_s)
    engine = load_engine(config(folders, settings))
    target = engine.target
    open_index = functools.partial(open_token_index, settings, target.fingerprint.target, target.hidden_size)
    index = HostThread(IndexHost(open_index))
    loop = EngineLoop(engine)
    client = IndexClient(
        index,
        loop.offer_hits,
        limit=settings.neighbours,
        deadline_s=settings.deadline_s,
        breaker=CircuitBreaker(clock=clock or Clock()),
    )
    loop.start(Outlets(lookups=client.look_up, points=client.write))
    client.start()
    try:
        yield Replica(loop, engine, client, index)
    finally:
        loop.stop()
        client.stop()
        index.close()


@pytest.fixture(scope="module")
def expected(folders: TinyFolders) -> Work:
    """What the prompts come to when nothing is retrieved."""
    engine = load_engine(config(folders, SemanticConfig(enabled=False)))
    loop = EngineLoop(engine)
    loop.start(Outlets())
    try:
        return decode(loop, engine, "plain")
    finally:
        loop.stop()


def slow(qdrant: Qdrant) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers after five seconds, or when the test is over."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        qdrant.released.wait(5.0)
        reply(handler, 200, b'{"result": [], "status": "ok", "time": 5.0}')

    return answer


def silent(qdrant: Qdrant) -> Callable[[BaseHTTPRequestHandler], None]:
    """Takes requests and never answers."""

    def hold(_: BaseHTTPRequestHandler) -> None:
        qdrant.released.wait(60)

    return hold


def erring(status: int, body: bytes = b"") -> Callable[[Qdrant], Callable[[BaseHTTPRequestHandler], None]]:
    return lambda _: lambda handler: reply(handler, status, body)


FAULTS: dict[str, Callable[[Qdrant], Callable[[BaseHTTPRequestHandler], None]]] = {
    "slow": slow,
    "silent": silent,
    "500": erring(500),
    "429": erring(429),
    "garbage": erring(200, b"<html>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_index_adds_nothing_to_a_request(
    folders: TinyFolders, qdrant: Qdrant, expected: Work, fault: str
) -> None:
    qdrant.fault = FAULTS[fault](qdrant)
    with retrieving(folders, qdrant.url) as replica:
        assert replica.decode("faulty") == expected
        wait_until(lambda: replica.client.counts().failures >= 1)
        assert replica.client.counts().hits == 0
        qdrant.released.set()  # what still waits for an answer may end


def test_no_request_waits_for_an_answer(folders: TinyFolders, qdrant: Qdrant, expected: Work) -> None:
    """The server holds the first call, which nothing gives up, until the requests have finished."""

    def hold(_: BaseHTTPRequestHandler) -> None:
        qdrant.released.wait()

    with retrieving(folders, qdrant.url, deadline_s=3600.0) as replica:
        vector = np.ones(replica.engine.target.hidden_size, np.float32)
        fingerprint = replica.engine.target.fingerprint.target
        replica.index.write([IndexPoint(vector, (1,), (1.0,), "elsewhere", fingerprint)]).result(60)
        qdrant.fault = hold  # searches have that deadline; the calls that open an index have their own
        try:
            assert replica.decode("held") == expected
            counts = replica.client.counts()
        finally:
            qdrant.released.set()
        assert (counts.hits, counts.failures) == (0, 0)


def test_a_dead_index_adds_nothing_to_a_request(folders: TinyFolders, expected: Work) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with retrieving(folders, url) as replica:
            assert replica.decode("dead") == expected
            wait_until(lambda: replica.client.counts().failures >= 1)


def test_an_ailing_index_is_left_alone_and_used_again_once_it_is_well(
    folders: TinyFolders, qdrant: Qdrant
) -> None:
    clock, refused = Clock(), threading.Semaphore(0)

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        refused.release()
        reply(handler, 503, b"")

    qdrant.fault = refuse
    with retrieving(folders, qdrant.url, clock) as replica:
        for attempt in range(3):  # the breaker's threshold
            replica.decode(f"ill-{attempt}")
        wait_until(lambda: replica.client.counts().breaker_opened == 1)
        replica.decode("open")
        wait_until(lambda: replica.client.counts().skipped > 0)
        replica.index.settle()  # what was under way when the breaker opened
        assert _drained(refused) >= 3
        replica.decode("left alone")
        wait_until(lambda: replica.client.counts().points_dropped >= 4 * len(PROMPTS))
        replica.index.settle()
        assert _drained(refused) == 0
        qdrant.fault = None
        clock.now += 3600.0
        replica.decode("well")
        wait_until(lambda: replica.client.counts().points_written >= 1)
        replica.decode("again")
        wait_until(lambda: replica.client.counts().hits >= 1)


def _drained(semaphore: threading.Semaphore) -> int:
    count = 0
    while semaphore.acquire(blocking=False):
        count += 1
    return count
