"""What the gateway answers when something is lost, late, full or broken."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from actors.generation import GenerationFailure
from services.api_errors import ApiError
from services.openai_schema import Message
from services.prompt_encoder import PromptEncoder
from services.replica_pool import OverloadedError, ReplicaLostError
from tests.tiny import tiny_tokenizer
from tests.unit.services.gateway_kit import HELLO, Pool, answer, call, chat, chunk, error, events, post


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_overload_is_429_with_retry_after() -> None:
    response = chat(Pool([OverloadedError("full")]))
    assert error(response, 429)["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("loss", [ReplicaLostError("died"), GenerationFailure("failed", "crashed")])
def test_a_replica_lost_before_its_first_token_is_replaced(
    loss: ReplicaLostError | GenerationFailure,
) -> None:
    pool = Pool([loss], answer())
    assert chat(pool).json()["choices"][0]["message"]["content"] == "Hello you"
    assert len({request.id for request in pool.requests}) == 2


def test_without_any_replica_it_is_503_with_retry_after() -> None:
    response = chat(Pool([ReplicaLostError("died")]))
    assert error(response, 503)["code"] == "unavailable"
    assert "retry-after" in response.headers


def test_a_replica_lost_later_is_a_clean_500() -> None:
    pool = Pool([chunk("H"), ReplicaLostError("died")])
    assert error(chat(pool), 500)["type"] == "server_error"
    assert len(pool.requests) == 1


def test_a_replica_lost_in_a_stream_is_an_error_event_before_done() -> None:
    pool = Pool([chunk("H"), ReplicaLostError("died")])
    found = events(chat(pool, stream=True))
    assert found[-1]["error"]["type"] == "server_error"


def test_a_stream_that_just_ends_is_an_error() -> None:
    assert error(chat(Pool([chunk("H")])), 500)["type"] == "server_error"


def test_what_the_engine_refuses_is_400() -> None:
    pool = Pool([GenerationFailure("invalid", "the prompt is cursed", "prompt")])
    found = error(chat(pool), 400)
    assert (found["message"], found["param"]) == ("the prompt is cursed", "prompt")


def test_a_bug_is_a_clean_500_without_details() -> None:
    found = error(chat(Pool([ValueError("secret path")])), 500)
    assert "secret" not in found["message"]
    found = events(chat(Pool([chunk("H"), ValueError("secret path")]), stream=True))[-1]["error"]
    assert "secret" not in found["message"]


def test_a_request_beyond_its_time_is_408_and_cancelled(pool: Pool) -> None:
    pool.pause = asyncio.Event()
    response = post(pool, "/v1/chat/completions", HELLO, timeout_s=0.05)
    assert error(response, 408)["code"] == "timeout"
    assert pool.closed == 1


def test_a_client_that_leaves_closes_its_request(pool: Pool) -> None:
    pool.pause = asyncio.Event()

    async def leave(client: httpx.AsyncClient) -> None:
        task = asyncio.ensure_future(client.post("/v1/chat/completions", json=HELLO))
        while not pool.requests:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    call(pool, leave)
    assert pool.closed == 1


def test_a_model_without_a_chat_template_says_so(pool: Pool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    refusing = tiny_tokenizer()
    refusing.chat_template = "{{ raise_exception('roles must alternate') }}"
    message = Message(role="user", content="Hi")
    for one, expected in ((tokenizer, "no chat template"), (refusing, "roles must alternate")):
        with pytest.raises(ApiError, match=expected) as caught:
            asyncio.run(PromptEncoder(one).chat([message]))
        assert caught.value.param == "messages"
