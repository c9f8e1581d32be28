"""Several choices for one request, and log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import httpx
import pytest

from actors.generation import GenerationChunk, TokenLogprob
from evospec.engine.token_text import TokenText
from services.openai_answers import ChatCompletion, TextCompletion
from services.replica_pool import OverloadedError, ReplicaLostError
from tests.unit.services.gateway_kit import (
    HELLO,
    Pool,
    Script,
    answer,
    call,
    chat,
    chunk,
    error,
    events,
    post,
)

PROMPT = {"model": "tiny", "prompt": "ab"}


def completion(pool: Pool, **fields: Any) -> httpx.Response:
    return post(pool, "/v1/completions", {**PROMPT, **fields})


# --- n ---


def test_each_choice_is_a_request_of_its_own_with_a_seed_of_its_own() -> None:
    pool = Pool(answer(), [chunk("Bye", "length")])
    body = chat(pool, n=2, seed=2**63 - 1).json()
    ChatCompletion.model_validate(body)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hello you", "Bye"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert [request.sampling.seed for request in pool.requests] == [2**63 - 1, -(2**63)]
    assert len({request.id for request in pool.requests}) == 2


def test_usage_is_of_all_choices_and_of_one_prompt() -> None:
    pool = Pool()
    usage = chat(pool, n=3).json()["usage"]
    assert usage["prompt_tokens"] == len(pool.requests[0].prompt_ids)
    assert usage["completion_tokens"] == 27
    assert usage["evospec"]["cycles"] == 6
    assert usage["evospec"]["drafted"] == 18


def test_streamed_choices_are_told_apart_by_their_index() -> None:
    pool = Pool(answer(), [chunk("B"), chunk("ye", "length")])
    found = events(chat(pool, n=2, stream=True, stream_options={"include_usage": True}))
    *pieces, last = found
    assert last["usage"]["completion_tokens"] == 12
    texts, reasons = ["", ""], [[], []]
    for (choice,) in (event["choices"] for event in pieces):
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert texts == ["Hello you", "Bye"]
    assert reasons == [["stop"], ["length"]]
    assert [event["choices"][0]["delta"].get("role") for event in pieces[:2]] == ["assistant", "assistant"]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_when_one_choice_finds_no_room_none_runs(position: int) -> None:
    scripts: list[Script] = [[chunk("H"), chunk("i", "stop")] for _ in range(3)]
    scripts[position] = [OverloadedError("full")]
    pool = Pool(*scripts)
    assert error(chat(pool, n=3), 429)["code"] == "overloaded"
    assert pool.closed == len(pool.requests) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_when_one_choice_is_lost_the_others_are_cancelled(stream: bool) -> None:
    endless: Script = [chunk("H")] * 10_000
    pool = Pool(endless, [chunk("H"), ReplicaLostError("died")], endless)
    response = chat(pool, n=3, stream=stream)
    found = events(response)[-1]["error"] if stream else error(response, 500)
    assert found["type"] == "server_error"
    assert pool.closed == 3


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_closes_all_choices(stream: bool, n: int) -> None:
    pool = Pool([chunk("H"), chunk("i")])
    pool.pause = asyncio.Event()

    async def leave(client: httpx.AsyncClient) -> None:
        asked = {**HELLO, "n": n, "stream": stream}
        task = asyncio.ensure_future(client.post("/v1/chat/completions", json=asked))
        while len(pool.requests) < n:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    call(pool, leave)
    assert pool.closed == n


# --- logprobs ---


def scored(piece: GenerationChunk, *tokens: tuple[str, float], top: int = 0) -> GenerationChunk:
    def shown(text: str) -> TokenText:
        return TokenText(text, text.encode())

    best = tuple((shown(f"<{rank}>"), -0.5 - rank) for rank in range(top))
    found = tuple(TokenLogprob(shown(text), logprob, best) for text, logprob in tokens)
    return replace(piece, logprobs=found)


def spoken(top: int = 0) -> Pool:
    """Hé, in three tokens; the text of the second one comes with the third."""
    first = scored(chunk("H", drafted=0, accepted=0), ("H", -0.25), top=top)
    held = scored(chunk("", accepted=0), ("bytes:\\xc3", -math.inf), top=top)
    return Pool([first, held, scored(chunk("é", "stop"), ("bytes:\\xa9", -2.0), top=top)])


def test_chat_log_probabilities_have_openais_shape() -> None:
    pool = spoken(top=2)
    body = chat(pool, logprobs=True, top_logprobs=2).json()
    ChatCompletion.model_validate(body)
    assert pool.requests[0].logprobs == 2
    content = body["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["H", "bytes:\\xc3", "bytes:\\xa9"]
    assert [entry["logprob"] for entry in content] == [-0.25, -9999.0, -2.0]  # JSON has no infinity
    assert content[0]["bytes"] == [72]
    assert [entry["token"] for entry in content[0]["top_logprobs"]] == ["<0>", "<1>"]
    assert content[0]["top_logprobs"][1] == {"token": "<1>", "logprob": -1.5, "bytes": [60, 49, 62]}


def test_completion_log_probabilities_have_openais_shape() -> None:
    pool = spoken(top=1)
    body = completion(pool, logprobs=1).json()
    TextCompletion.model_validate(body)
    assert pool.requests[0].logprobs == 1
    found = body["choices"][0]["logprobs"]
    assert found["tokens"] == ["H", "bytes:\\xc3", "bytes:\\xa9"]
    assert found["token_logprobs"] == [-0.25, -9999.0, -2.0]
    assert found["text_offset"] == [0, 1, 11]
    assert found["top_logprobs"][0] == {"<0>": -0.5, "H": -0.25}  # the token's own too, best or not


@pytest.mark.parametrize("fields", [{}, {"logprobs": 0}])
def test_without_alternatives_there_are_none(fields: dict[str, Any]) -> None:
    found = completion(spoken(), **fields).json()["choices"][0]["logprobs"]
    assert found is None if not fields else found["top_logprobs"] is None


def test_streamed_log_probabilities_are_the_whole_ones_in_parts() -> None:
    whole = completion(spoken(top=1), logprobs=1).json()["choices"][0]["logprobs"]
    pieces = [event["choices"][0] for event in events(completion(spoken(top=1), logprobs=1, stream=True))]
    assert [piece["text"] for piece in pieces] == ["H", "", "é"]
    for name, parts in whole.items():
        assert [entry for piece in pieces for entry in piece["logprobs"][name]] == parts


def test_a_chat_streams_them_even_while_text_is_held_back() -> None:
    pieces = [event["choices"][0] for event in events(chat(spoken(), logprobs=True, stream=True))]
    assert pieces[0]["logprobs"] is None  # the role
    assert [len(piece["logprobs"]["content"]) for piece in pieces[1:]] == [1, 1, 1]
