"""The tools of this tier see what they are there to see."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import torch
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from safetensors.torch import save_file

from evospec.config import RegistryConfig
from evospec.wire import Fingerprints
from tests.chaos.kit import streaming_client
from tests.chaos.kit.known_prompts import KnownPrompt
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.registry_server import RegistryServer
from tests.chaos.kit.remote_publisher import RemotePublisher
from tests.chaos.kit.streaming_client import Answer, StreamingClient
from tests.chaos.kit.tally import Tally
from tests.integration.process_kit import descendants, marked_environment

PROMPT = KnownPrompt("x", (7,), (1, 2, 3, 4))


# --- the client ---


def piece(*tokens: int, last: bool = False) -> str:
    choice = {"token_ids": tokens, "finish_reason": "length" if last else None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


USAGE = 'data: {"choices": [], "usage": {"evospec": {"adapter_version": 9}}}\n\n'
ERROR = 'data: {"error": {"message": "the replica was lost"}}\n\n'
DONE = "data: [DONE]\n\n"
WHOLE = piece(1) + piece(2, 3) + piece(4, last=True) + USAGE + DONE


def ask(*replies: httpx.Response | httpx.TransportError) -> Answer:
    """What a client makes of these replies, one per attempt."""
    left = list(replies)

    def reply(_: httpx.Request) -> httpx.Response:
        following = left.pop(0)
        if isinstance(following, httpx.TransportError):
            raise following
        return following

    async def once() -> Answer:
        async with httpx.AsyncClient(transport=httpx.MockTransport(reply), base_url="http://x") as http:
            return await StreamingClient(http, "tiny").ask(PROMPT)

    answer = asyncio.run(once())
    assert not left
    return answer


def stream(text: str) -> httpx.Response:
    return httpx.Response(200, text=text)


def test_a_whole_answer() -> None:
    answer = ask(stream(WHOLE))
    assert (answer.ending, answer.tokens, answer.version) == ("complete", [1, 2, 3, 4], 9)
    assert len(answer.gaps_s) == 2
    assert answer.wrong_tokens(PROMPT.expected) == 0


def test_a_client_asks_again_while_it_was_shown_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_client, "FIRST_PAUSE_S", 0.0)
    answer = ask(
        httpx.ConnectError("refused"),
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(500),
        stream(ERROR),
        stream(""),
        stream(WHOLE),
    )
    assert answer.ending == "complete"
    assert answer.retries == {
        "ConnectError": 1,
        "429": 1,
        "503": 1,
        "500 without Retry-After": 1,
        "the replica was lost": 1,
        "the stream ended before the answer did": 1,
    }


def test_what_was_refused_for_good_is_lost() -> None:
    answer = ask(httpx.Response(400))
    assert (answer.ending, answer.reason, answer.retries) == ("lost", "400", {})


@pytest.mark.parametrize(("text", "told"), [(piece(1) + ERROR + DONE, True), (piece(1), False)])
def test_an_answer_that_broke_off_is_not_asked_for_again(text: str, told: bool) -> None:
    answer = ask(stream(text))
    assert (answer.ending, answer.told, answer.tokens) == ("broken", told, [1])
    assert answer.wrong_tokens(PROMPT.expected) == 0


@pytest.mark.parametrize(
    ("tokens", "ending", "wrong"),
    [
        ([1, 2, 9, 4], "complete", 1),
        ([1, 2, 3], "complete", 1),
        ([1, 2, 3, 4, 5], "complete", 1),
        ([1, 9], "broken", 1),
        ([1, 2], "broken", 0),
    ],
)
def test_wrong_tokens_are_seen(tokens: list[int], ending: str, wrong: int) -> None:
    answer = Answer(tokens=tokens, ending="complete" if ending == "complete" else "broken")
    tally = Tally()
    tally.add(PROMPT, answer)
    assert (answer.wrong_tokens(PROMPT.expected), tally.wrong, tally.compared) == (wrong, wrong, len(tokens))


# --- the registry's server and the proxy before it ---


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path) as running:
        yield running


def client_of(server: RegistryServer, timeout_s: float = 30.0) -> Redis:
    return Redis.from_url(server.url, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def reaches(server: RegistryServer) -> bool:
    with closing(client_of(server, 5.0)) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def test_a_killed_server_comes_back_with_its_data_at_the_same_address(server: RegistryServer) -> None:
    url = server.url
    with closing(client_of(server)) as client:
        client.set("kept", "yes")
        server.kill()
        with pytest.raises(RedisError):
            client.get("kept")
        assert not reaches(server)
        server.restart()
        assert server.url == url
        assert client.get("kept") == b"yes"


def test_a_refusing_proxy_cuts_connections_and_accepts_none(server: RegistryServer) -> None:
    with closing(client_of(server)) as client:
        client.ping()
        server.proxy.refuse()
        for _ in range(3):
            with pytest.raises(RedisConnectionError):
                client.ping()
        server.proxy.restore()
        assert client.ping()


def test_a_cut_ends_connections_and_new_ones_pass(server: RegistryServer) -> None:
    with closing(client_of(server)) as client:
        before = client.client_id()
        server.proxy.cut()
        wait_for(lambda: reaches(server))
        assert client.client_id() != before


def test_a_stalled_proxy_passes_nothing_until_it_is_restored(server: RegistryServer) -> None:
    with closing(client_of(server, 0.3)) as client:
        client.ping()
        server.proxy.stall()
        with pytest.raises(RedisTimeoutError):
            client.ping()
        server.proxy.restore()
        wait_for(lambda: reaches(server))


def publishing() -> list[str]:
    return [line for line in descendants() if "remote_publisher" in line or "multiprocessing" in line]


def test_a_remote_publisher_leaves_no_process_behind(
    server: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in marked_environment().items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "adapter.safetensors"
    save_file({"fc.lora_a": torch.ones(1, 2)}, file)
    config = RegistryConfig(url=server.direct_url)
    with RemotePublisher(config, Fingerprints(target="t", drafter="d", tokenizer="k"), [file]) as publisher:
        assert [publisher.publish() for _ in range(2)] == [1, 2]
        assert publishing()
    assert not publishing()


def slow(server: RegistryServer) -> None:
    server.proxy.delay_s = 0.2


def narrow(server: RegistryServer) -> None:
    server.proxy.bytes_per_s = 50_000.0


@pytest.mark.parametrize("ail", [slow, narrow])
def test_a_slow_proxy_takes_its_time(server: RegistryServer, ail: Callable[[RegistryServer], None]) -> None:
    with closing(client_of(server)) as client:
        client.ping()
        ail(server)
        began = time.monotonic()
        client.set("blob", bytes(20_000))
        assert time.monotonic() - began >= 0.39  # there and back, or 20 kB at 50 kB/s
        assert client.strlen("blob") == 20_000
