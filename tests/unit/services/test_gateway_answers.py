"""What the gateway answers: OpenAI's shapes, whole and streamed."""

from __future__ import annotations

import pytest

from services.replica_pool import ReplicaLostError
from tests.tiny import tiny_tokenizer
from tests.unit.services.gateway_kit import HELLO, Pool, call, chat, chunk, error, events, post


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_a_chat_answer_has_openais_shape_and_our_usage(pool: Pool) -> None:
    body = chat(pool).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello you", "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = len(pool.requests[0].prompt_ids)
    assert body["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 9,
        "total_tokens": prompt + 9,
        "evospec": {"cycles": 2, "drafted": 6, "accepted": 6, "adapter_version": 3, "vocabulary_epoch": 9},
    }


def test_the_chat_template_makes_the_prompt(pool: Pool) -> None:
    chat(pool, messages=[{"role": "developer", "content": "Be."}, *HELLO["messages"]])
    text = tiny_tokenizer().decode(list(pool.requests[0].prompt_ids))
    assert text == "<|system|>Be.<|end|><|user|>Hi<|end|><|assistant|>"


def test_content_parts_are_joined(pool: Pool) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    chat(pool, messages=[{"role": "user", "content": parts}])
    assert "<|user|>Hi<|end|>" in tiny_tokenizer().decode(list(pool.requests[0].prompt_ids))


def test_a_completion_answer_has_openais_shape(pool: Pool) -> None:
    body = post(pool, "/v1/completions", {"model": "tiny", "prompt": "ab"}).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "Hello you", "logprobs": None, "finish_reason": "stop"}]
    assert pool.requests[0].prompt_ids == tuple(tiny_tokenizer()("ab").input_ids)


def test_a_prompt_may_be_token_ids_and_token_ids_may_be_returned(pool: Pool) -> None:
    fields = {"model": "tiny", "prompt": [5, 6], "return_token_ids": True}
    body = post(pool, "/v1/completions", fields).json()
    assert pool.requests[0].prompt_ids == (5, 6)
    assert body["prompt_token_ids"] == [5, 6]
    assert body["choices"][0]["token_ids"] == list(b"Hello you")


def test_a_chat_stream_opens_with_the_role_and_ends_with_reason_and_done(pool: Pool) -> None:
    response = chat(pool, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    deltas = [event["choices"][0] for event in events(response)]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == "Hello you"
    assert [delta["finish_reason"] for delta in deltas] == [None, None, None, "stop"]
    assert len({event["id"] for event in events(response)}) == 1
    assert all("usage" not in event for event in events(response))


def test_a_stream_reports_usage_last_when_asked(pool: Pool) -> None:
    response = chat(pool, stream=True, stream_options={"include_usage": True})
    *others, last = events(response)
    assert all(event["usage"] is None for event in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_reports_usage_as_it_grows_when_asked(pool: Pool, path: str) -> None:
    body = HELLO if "chat" in path else {"model": "tiny", "prompt": "ab"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = events(post(pool, path, {**body, "stream": True, "stream_options": options}))
    counts = [event["usage"]["completion_tokens"] for event in found]
    assert counts[-4:] == [1, 5, 9, 9]
    assert [event["choices"] == [] for event in found] == [False] * (len(found) - 1) + [True]


def test_usage_that_grows_needs_usage(pool: Pool) -> None:
    response = chat(pool, stream=True, stream_options={"continuous_usage_stats": True})
    assert all("usage" not in event for event in events(response))


def test_a_completion_stream_carries_text(pool: Pool) -> None:
    fields = {"model": "tiny", "prompt": "ab", "stream": True}
    found = events(post(pool, "/v1/completions", fields))
    assert [event["choices"][0]["text"] for event in found] == ["H", "ello", " you"]


def test_chunks_without_text_send_no_event() -> None:
    pool = Pool([chunk("", drafted=0, accepted=0), chunk("ab", "stop")])
    texts = [event["choices"][0]["delta"] for event in events(chat(pool, stream=True))]
    assert texts == [{"role": "assistant", "content": ""}, {"content": "ab"}]


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_no_character_cuts_an_event_in_two(character: str) -> None:
    """Clients that read lines, httpx among them, end them wherever `str.splitlines` does."""
    response = chat(Pool([chunk(f"a{character}b", "stop")]), stream=True)
    assert all(line.startswith("data: ") for line in response.text.splitlines() if line)
    assert events(response)[1]["choices"][0]["delta"]["content"] == f"a{character}b"


def test_models_are_listed_and_found_by_name(pool: Pool) -> None:
    listed = call(pool, lambda client: client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert listed["data"][0]["max_model_len"] == 64
    one = call(pool, lambda client: client.get("/v1/models/tiny")).json()
    assert one["id"] == "tiny"
    found = error(call(pool, lambda client: client.get("/v1/models/other/name")), 404)
    assert found["code"] == "model_not_found"


def test_health_follows_the_replicas(pool: Pool) -> None:
    assert call(pool, lambda client: client.get("/health")).status_code == 200
    pool.limits_error = ReplicaLostError("all dead")
    response = call(pool, lambda client: client.get("/health"))
    assert error(response, 503)["code"] == "unavailable"
