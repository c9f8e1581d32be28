"""What the gateway makes of parameters: passed on, capped, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.services.gateway_kit import Pool, call, chat, error, post


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_parameters_reach_the_sampler(pool: Pool) -> None:
    chat(pool, temperature=0.5, top_p=0.9, top_k=40, seed=7, max_tokens=5, stop="x", ignore_eos=True)
    sampling = pool.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 40, 7)
    assert (sampling.max_tokens, sampling.ignore_eos) == (5, True)
    assert pool.requests[0].stop == ("x",)


def test_defaults_are_openais(pool: Pool) -> None:
    chat(pool)
    chat(pool)
    post(pool, "/v1/completions", {"model": "tiny", "prompt": "ab"})
    first, second, completion = (request.sampling for request in pool.requests)
    assert (first.temperature, first.top_p, first.top_k) == (1.0, 1.0, 0)
    assert first.seed != second.seed
    assert first.max_tokens == 64 - len(pool.requests[0].prompt_ids)
    assert completion.max_tokens == 16


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 10_000}, None),
        ({"max_completion_tokens": 3}, 3),
        ({"max_completion_tokens": 9, "max_tokens": 4}, 4),
    ],
)
def test_token_limits_are_capped_by_the_context(
    pool: Pool, fields: dict[str, int], expected: int | None
) -> None:
    chat(pool, **fields)
    room = 64 - len(pool.requests[0].prompt_ids)
    assert pool.requests[0].sampling.max_tokens == (expected or room)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "n": 1,
            "logprobs": False,
            "best_of": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "logit_bias": {},
        },
        {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "top_logprobs": None},
        {"user": "someone", "store": False, "metadata": {}, "service_tier": "auto", "top_k": -1},
    ],
)
def test_parameters_that_ask_for_nothing_are_accepted(pool: Pool, fields: dict[str, Any]) -> None:
    assert chat(pool, **fields).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("audio", {"voice": "x"}),
        ("best_of", 3),
    ],
)
def test_unsupported_parameters_are_refused_by_name(pool: Pool, name: str, value: Any) -> None:
    found = error(chat(pool, **{name: value}), 400)
    assert (found["param"], found["code"]) == (name, "unsupported_parameter")
    assert name in found["message"]
    assert not pool.requests


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages.0.x", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "Hi"}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_k": 2**31}, "top_k", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"logprobs": 3}, "logprobs", "invalid_value"),
        ({"top_logprobs": 3}, None, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"trace": "no"}, "trace", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop.1", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"model": None}, "model", "invalid_value"),
    ],
)
def test_wrong_values_are_400_and_name_the_parameter(
    pool: Pool, fields: dict[str, Any], param: str | None, code: str
) -> None:
    found = error(chat(pool, **fields), 400)
    assert found["code"] == code
    if param is not None:
        assert found["param"] == param
    assert not pool.requests


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe\xfa", b'{"model": }', b"[" * 100_000]
)
def test_invalid_json_is_400(pool: Pool, body: bytes) -> None:
    assert error(post(pool, "/v1/chat/completions", body), 400)["code"] == "invalid_json"


def test_a_missing_parameter_is_named(pool: Pool) -> None:
    found = error(post(pool, "/v1/completions", {"model": "tiny"}), 400)
    assert (found["param"], found["code"]) == ("prompt", "missing_required_parameter")


def test_an_unknown_model_is_404(pool: Pool) -> None:
    found = error(chat(pool, model="gpt-4"), 404)
    assert (found["param"], found["code"]) == ("model", "model_not_found")
    assert "tiny" in found["message"]


@pytest.mark.parametrize("length", [64, 65, 5000])
def test_a_prompt_that_fills_the_context_is_400(pool: Pool, length: int) -> None:
    found = error(post(pool, "/v1/completions", {"model": "tiny", "prompt": "a" * length}), 400)
    assert (found["param"], found["code"]) == ("prompt", "context_length_exceeded")
    assert "64" in found["message"]
    assert str(length) in found["message"]


def test_a_long_conversation_is_400(pool: Pool) -> None:
    found = error(chat(pool, messages=[{"role": "user", "content": "a" * 100}]), 400)
    assert (found["param"], found["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize("prompt", ["", [], [-1], [260]])
def test_prompts_that_cannot_be_continued_are_400(pool: Pool, prompt: Any) -> None:
    found = error(post(pool, "/v1/completions", {"model": "tiny", "prompt": prompt}), 400)
    assert found["param"] == "prompt"


def test_a_batch_of_prompts_is_refused(pool: Pool) -> None:
    found = error(post(pool, "/v1/completions", {"model": "tiny", "prompt": ["a", "b"]}), 400)
    assert found["param"].startswith("prompt")


def test_a_body_beyond_reason_is_413(pool: Pool) -> None:
    body = b'{"model": "tiny", "prompt": "' + b"a" * (17 << 20) + b'"}'
    assert error(post(pool, "/v1/completions", body), 413)["code"] == "request_too_large"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/completions", 405)])
def test_other_paths_and_methods_have_the_same_error_shape(
    pool: Pool, method: str, path: str, status: int
) -> None:
    error(call(pool, lambda client: client.request(method, path)), status)
