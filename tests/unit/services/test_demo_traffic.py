"""The demo's stream of requests: what is asked when, and how an answer is read."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from evospec.bench.prompts import Prompt, read_prompts
from services.demo.client import ChatClient, Usage
from services.demo.run import PROMPTS
from services.demo.traffic import Errand, Traffic, schedule
from services.event_stream import RequestFailedError

TOPICS = ["general", "code", "law", "medicine"]


def test_the_prompts_that_ship_are_enough_for_two_rounds() -> None:
    prompts = read_prompts([PROMPTS])
    counts = Counter(prompt.domain for prompt in prompts)
    assert list(counts) == TOPICS
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    errands = schedule(prompts, 72)
    assert Counter(errand.prompt.id for errand in errands).most_common(1)[0][1] == 1


def test_topics_come_one_after_the_other_twice_round() -> None:
    prompts = [Prompt(f"{topic}/{number}", topic, "") for number in range(3) for topic in ("law", "code")]
    errands = schedule(prompts, 9)
    assert [(errand.round, errand.prompt.id) for errand in errands] == [
        *[(1, f"law/{number}") for number in (0, 1, 2)],
        *[(1, f"code/{number}") for number in (0, 1)],
        *[(2, f"law/{number}") for number in (0, 1)],  # once more from the first
        *[(2, f"code/{number}") for number in (2, 0)],
    ]


@pytest.mark.parametrize("requests", [1, 7, 60, 72, 200])
def test_as_many_requests_as_asked_for_are_planned(requests: int) -> None:
    errands = schedule(read_prompts([PROMPTS]), requests)
    assert len(errands) == requests
    sizes = Counter((errand.round, errand.topic) for errand in errands).values()
    assert max(sizes) - min(sizes) <= 1


def event(content: object) -> str:
    return f"data: {json.dumps(content)}\n\n"


def delta(text: str, finish: str | None = None) -> str:
    return event({"choices": [{"delta": {"content": text} if text else {}, "finish_reason": finish}]})


USAGE = event(
    {
        "choices": [],
        "usage": {
            "completion_tokens": 9,
            "evospec": {"cycles": 4, "drafted": 20, "accepted": 4, "adapter_version": 2},
        },
    }
)
OPENING = event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
DONE = "data: [DONE]\n\n"
Answer = Callable[[httpx.Request], httpx.Response]


def ask(answer: Answer, seen: list[str] | None = None) -> Usage:
    async def run() -> Usage:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            client = ChatClient(http, "tiny", 80)
            return await client.ask("hello", lambda: (seen if seen is not None else []).append("first"))

    return asyncio.run(run())


def streamed(*events: str) -> Answer:
    return lambda _: httpx.Response(200, text="".join(events))


def test_an_answer_is_read_to_its_end() -> None:
    seen: list[str] = []
    usage = ask(streamed(OPENING, delta("a"), delta("b"), delta("", "stop"), USAGE, DONE), seen)
    assert usage == Usage(tokens=9, cycles=4, drafted=20, accepted=4, adapter_version=2)
    assert seen == ["first"]


def test_the_request_is_what_an_openai_client_sends() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append((request.url.path, json.loads(request.content)))
        return streamed(delta("a", "length"), USAGE, DONE)(request)

    ask(answer)
    path, body = bodies[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (streamed(delta("a"), event({"error": {"message": "the replica is gone"}}), DONE), "replica is gone"),
        (streamed(delta("a"), delta("", "stop"), DONE), "before the answer was complete"),
        (streamed(delta("a"), USAGE, DONE), "before the answer was complete"),
        (streamed(delta("a")), "closed in the middle"),
        (lambda _: httpx.Response(429, json={"error": {"message": "too busy"}}), "HTTP 429: too busy"),
        (lambda _: httpx.Response(502, text="<html>\nbad gateway"), "HTTP 502: <html> bad gateway"),
    ],
)
def test_whatever_is_not_a_whole_answer_is_a_failure(answer: Answer, message: str) -> None:
    with pytest.raises(RequestFailedError, match=message):
        ask(answer)


def test_a_broken_connection_is_a_failure() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(RequestFailedError, match="ConnectError: refused"):
        ask(refuse)


class FakeClient(ChatClient):
    """Answers at once, but not prompts that say `fail`; counts how many run together."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    async def ask(self, prompt: str, first_token: Callable[[], None]) -> Usage:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if prompt == "fail":
            raise RequestFailedError("no luck")
        first_token()
        return Usage(9, 4, 20, 4, 1)


def test_every_errand_gets_a_record_and_failures_are_kept() -> None:
    errands = [Errand(Prompt(str(number), "law", "fail" if number == 3 else "x"), 1) for number in range(10)]
    client = FakeClient()
    traffic = Traffic(errands, client)
    asyncio.run(traffic.run(4))
    assert client.most == 4
    assert sorted(int(record.prompt) for record in traffic.records) == list(range(10))
    assert [(record.prompt, record.error) for record in traffic.failed] == [("3", "no luck")]
    answered = next(record for record in traffic.records if not record.failed)
    assert answered.acceptance_length == 2.0  # 9 tokens, one of them before the first of 4 cycles
    assert answered.first_token_s is not None
    assert answered.started_s <= answered.first_token_s <= answered.finished_s
