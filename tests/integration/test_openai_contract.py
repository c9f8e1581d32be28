"""What users of the `openai` package rely on, on real Ray Serve with keys, and a tiny random model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
import torch
from hypothesis import given, settings
from openai import AsyncOpenAI, OpenAI
from schemathesis import GenerationMode, checks
from transformers import AutoModelForCausalLM

from actors.status import ReplicaStatus
from evospec.config import (
    AccessConfig,
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    SemanticConfig,
    ServeConfig,
    VocabularyConfig,
)
from evospec.config.access import AdminKey, ApiKey
from services.access import digest_of, new_key
from services.local_cluster import LocalCluster
from services.openai_answers import ChatCompletion, ClusterState, TextCompletion
from tests.tiny import tiny_folders, tiny_tokenizer
from tests.unit.actors.fakes import wait_until

MODEL = "tiny"
LENGTH = 512
SLOTS = 8  # on two replicas
ALICE, BOB, ADMIN = (new_key() for _ in range(3))
USER = [{"role": "user", "content": "Tell me a story"}]


@dataclass(frozen=True)
class Served:
    """A running cluster, and the clients that users have."""

    cluster: LocalCluster
    target: Path

    def client(self, key: str = ALICE, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.cluster.url}/v1", api_key=key, max_retries=0, **options)

    def raw(self, key: str | None = ALICE) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.cluster.url, headers=headers, timeout=120, trust_env=False)

    def replicas(self) -> list[ReplicaStatus]:
        return self.cluster.replicas()

    def idle(self) -> bool:
        return all(status.engine.running == status.engine.waiting == 0 for status in self.replicas())

    @cached_property
    def reference(self) -> Any:
        """transformers' own, without our code."""
        return AutoModelForCausalLM.from_pretrained(self.target, dtype=torch.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folders = tiny_folders(tmp_path_factory.mktemp("tiny"))
    config = Config(
        model=ModelConfig(
            target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32", threads=1
        ),
        engine=EngineConfig(max_batch=SLOTS // 2, max_length=LENGTH, draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
        semantic=SemanticConfig(refresh_tokens=16),
        alignment=AlignmentConfig(trace_positions=32, min_traces=100_000),  # traces, but no lessons
        serve=ServeConfig(port=0, replicas=2, model_name=MODEL, request_timeout_s=60),
        access=AccessConfig(
            keys=(
                ApiKey(name="alice", sha256=digest_of(ALICE), tenant="acme"),
                ApiKey(name="bob", sha256=digest_of(BOB), tenant="bobs"),
            ),
            admin_keys=(AdminKey(name="root", sha256=digest_of(ADMIN)),),
        ),
    )
    with LocalCluster(config) as cluster:
        yield Served(cluster, folders.target)


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with served.client() as client:
        yield client


# --- chat and completions ---


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "seed": 7}])
def test_a_chat_streams_what_it_answers_whole(client: OpenAI, sampling: Any) -> None:
    asked: Any = {"model": MODEL, "messages": USER, "max_completion_tokens": 30, **sampling}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 30
    details = whole.usage.model_dump()["evospec"]
    assert details.keys() == {"cycles", "drafted", "accepted", "adapter_version", "vocabulary_epoch"}
    ChatCompletion.model_validate(whole.model_dump(exclude_unset=True))


def test_a_completion_streams_what_it_answers_whole(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "Once", "max_tokens": 30, "temperature": 0.9, "seed": 3}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    TextCompletion.model_validate(whole.model_dump(exclude_unset=True))


def test_each_of_several_choices_is_what_its_seed_gives_alone(client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": USER, "max_tokens": 20, "temperature": 1.0, "seed": 11}
    several = client.chat.completions.create(**asked, n=4)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    alone = [
        client.chat.completions.create(**{**asked, "seed": 11 + index}).choices[0].message.content
        for index in range(4)
    ]
    assert texts == alone
    streamed = ["", "", "", ""]
    for chunk in client.chat.completions.create(**asked, n=4, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_more_choices_than_slots_take_turns(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="x", n=20, max_tokens=6, temperature=1.0)
    assert len(answer.choices) == 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_may_lie_across_chunks(client: OpenAI, stream: bool) -> None:
    asked: Any = {"model": MODEL, "prompt": "stop here", "max_tokens": 60, "temperature": 0}
    asked["extra_body"] = {"ignore_eos": True}
    full = client.completions.create(**asked).choices[0].text
    stop = full[8:15]
    answer = client.completions.create(**asked, stop=["\x00never", stop], stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == full[: full.index(stop)]
    assert choices[-1].finish_reason == "stop"


# --- log-probabilities ---


def expected_logprobs(served: Served, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab], before temperature."""
    with torch.inference_mode():
        logits = served.reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(dim=-1)


def test_chat_log_probabilities_are_the_targets_own(served: Served, client: OpenAI) -> None:
    answer: Any = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "é"}],
        max_tokens=24,
        temperature=1.5,
        top_p=0.5,
        logprobs=True,
        top_logprobs=4,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    choice = answer.choices[0]
    content = choice.logprobs.content
    assert len(content) == len(choice.token_ids) == answer.usage.completion_tokens == 24
    expected = expected_logprobs(served, answer.prompt_token_ids, choice.token_ids)
    for place, token, entry in zip(expected, choice.token_ids, content, strict=True):
        assert math.isclose(entry.logprob, float(place[token]), abs_tol=1e-4)
        best = place.topk(4).values.tolist()
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best, abs=1e-4)
    raw = bytes(byte for entry in content for byte in entry.bytes)
    special = [token for token in choice.token_ids if token >= 256]
    if not special:
        assert raw.decode(errors="replace") == choice.message.content


def test_completion_log_probabilities_whole_and_streamed(served: Served, client: OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "ab", "max_tokens": 20, "temperature": 0, "logprobs": 2}
    asked["extra_body"] = {"return_token_ids": True, "ignore_eos": True}
    choice: Any = client.completions.create(**asked).choices[0]
    expected = expected_logprobs(served, tiny_tokenizer()("ab").input_ids, choice.token_ids)
    greedy = expected.max(dim=-1).values.tolist()
    assert choice.logprobs.token_logprobs == pytest.approx(greedy, abs=1e-4)
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)  # the token is the best one
    streamed: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for chunk in client.completions.create(**asked, stream=True):
        for name, found in streamed.items():
            found += getattr(chunk.choices[0].logprobs, name)
    assert streamed["tokens"] == choice.logprobs.tokens
    assert streamed["text_offset"] == choice.logprobs.text_offset
    assert streamed["token_logprobs"] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)


# --- errors, keys, ids ---


def test_errors_are_the_clients_own_exceptions(served: Served, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=USER)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.completions.create(model=MODEL, prompt="x", echo=True)
    assert (unsupported.value.param, unsupported.value.code) == ("echo", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model=MODEL, prompt="x", extra_body={"frobnicate": 1})
    assert (unknown.value.param, unknown.value.code) == ("frobnicate", "unknown_parameter")
    with pytest.raises(openai.AuthenticationError) as refused, served.client("wrong") as stranger:
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id is not None


def test_only_health_needs_no_key(served: Served) -> None:
    with served.raw(None) as anybody:
        assert anybody.get("/health").status_code == 200
        for path in ("/v1/models", "/openapi.json", "/admin/status", "/docs", "/metrics"):
            assert anybody.get(path).status_code == 401
    with served.raw(ADMIN) as admin:
        assert admin.get("/v1/models").status_code == 401


def test_administrators_see_the_cluster(served: Served) -> None:
    with served.raw(ADMIN) as admin:
        state = admin.get("/admin/status").json()
    ClusterState.model_validate(state)
    assert {status["replica"] for status in state["replicas"]} == {
        status.replica for status in served.replicas()
    }
    assert state["replicas"][0]["engine"]["cycles"] >= 0
    assert state["aligner"] is not None
    assert state["rollout"] is not None


def test_request_ids_go_both_ways(served: Served, client: OpenAI) -> None:
    mine = {"x-request-id": "mine"}
    asked: Any = {"model": MODEL, "messages": USER, "max_tokens": 2, "extra_headers": mine}
    assert client.chat.completions.create(**asked)._request_id == "mine"
    assert client.chat.completions.create(**asked, stream=True).response.headers["x-request-id"] == "mine"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="", extra_headers=mine)
    assert refused.value.request_id == "mine"
    with served.raw(None) as anybody:
        ids = [anybody.get(path).headers["x-request-id"] for path in ("/health", "/v1/models", "/nowhere")]
        assert len(set(ids)) == 3
        assert all(ids)


# --- what is learned, and of whom ---


def test_a_request_that_opts_out_leaves_nothing(served: Served, client: OpenAI) -> None:
    def kept() -> tuple[int, int]:
        return (
            sum(status.traces.sent for status in served.replicas()),
            served.cluster.index_points(),
        )

    asked: Any = {"model": MODEL, "max_tokens": 80, "temperature": 0}
    wait_until(served.idle, 60)
    client.completions.create(**asked, prompt="kept before", extra_body={"ignore_eos": True})
    wait_until(lambda: kept()[0] > 0 and kept()[1] > 0, 60)
    before = kept()
    for number in range(6):
        prompt = f"nobody may learn of this {number} {'abcdef'[number] * 9}"
        if number % 2:
            body, headers = {"ignore_eos": True, "trace": False}, {}
        else:
            body, headers = {"ignore_eos": True}, {"X-EvoSpec-Trace": "off"}
        client.completions.create(**asked, prompt=prompt, n=2, extra_body=body, extra_headers=headers)
    assert kept() == before
    client.completions.create(**asked, prompt="zzz but of this one", extra_body={"ignore_eos": True})
    wait_until(lambda: kept()[0] > before[0], 60)  # whatever the others had left would have come first
    wait_until(lambda: kept()[1] > before[1], 60)


def test_what_a_tenant_taught_is_found_by_the_same_tenant_only(served: Served) -> None:
    def hits() -> int:
        return sum(status.index.hits for status in served.replicas())

    def lookups() -> int:
        return sum(status.index.lookups for status in served.replicas())

    def ask(key: str, prompt: str) -> None:
        with served.client(key) as client:
            client.completions.create(
                model=MODEL, prompt=prompt, max_tokens=60, temperature=0, extra_body={"ignore_eos": True}
            )

    for number in range(4):
        ask(ALICE, f"the same context every time {number}")
    wait_until(lambda: served.idle() and served.cluster.index_points() > 0, 60)
    before, asked = hits(), lookups()
    ask(BOB, "the same context every time 0")
    wait_until(lambda: lookups() > asked, 60)
    assert hits() == before
    ask(ALICE, "the same context every time 0")
    wait_until(lambda: hits() > before, 60)


# --- clients that leave ---


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_slots_of_all_its_choices(
    served: Served, stream: bool, n: int
) -> None:
    wait_until(served.idle, 60)
    before = sum(status.engine.requests_cancelled for status in served.replicas())
    body = {"model": MODEL, "prompt": "x", "max_tokens": LENGTH, "ignore_eos": True, "n": n, "stream": stream}

    async def leave() -> None:
        headers = {"authorization": f"Bearer {ALICE}"}
        async with httpx.AsyncClient(base_url=served.cluster.url, headers=headers, trust_env=False) as http:
            task = asyncio.ensure_future(http.post("/v1/completions", json=body, timeout=120))
            while sum(status.engine.running for status in await asyncio.to_thread(served.replicas)) < n:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    wait_until(served.idle, 60)
    assert sum(status.engine.requests_cancelled for status in served.replicas()) == before + n


def test_a_hundred_clients_that_leave_in_mid_stream_free_their_slots(served: Served) -> None:
    wait_until(served.idle, 60)
    before = sum(status.engine.requests_cancelled for status in served.replicas())
    finished = sum(status.engine.requests_finished for status in served.replicas())

    async def leave(client: AsyncOpenAI, number: int) -> None:
        stream = await client.completions.create(
            model=MODEL, prompt=f"{number}", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()

    async def all_leave() -> None:
        url = f"{served.cluster.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key=ALICE, max_retries=0, timeout=120) as client:
            await asyncio.gather(*(leave(client, number) for number in range(100)))

    asyncio.run(all_leave())
    wait_until(served.idle, 60)
    cancelled = sum(status.engine.requests_cancelled for status in served.replicas()) - before
    ended = sum(status.engine.requests_finished for status in served.replicas()) - finished
    assert cancelled + ended == 100
    assert cancelled >= 90  # a few may have had their last token before anybody heard


# --- anything at all ---


def test_no_request_that_fits_the_description_or_breaks_it_fails_the_server(served: Served) -> None:
    headers = {"authorization": f"Bearer {ALICE}"}
    schema = schemathesis.openapi.from_url(f"{served.cluster.url}/openapi.json", headers=headers)
    refusals = {*range(400, 500)}
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        for operation in schema.include(method="POST").get_all_operations():

            @settings(max_examples=20, derandomize=True, database=None)
            @given(operation.ok().as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                response = case.call(headers=headers, timeout=120)
                case.validate_response(response, checks=[checks.not_a_server_error])
                assert response.status_code in {200, *refusals}

            ask()
    assert all(status.engine.running >= 0 for status in served.replicas())


def test_it_serves_on(served: Served) -> None:
    """After all that came before: both replicas are those that were started."""
    wait_until(served.idle, 60)
    with served.client() as client, ThreadPoolExecutor(8) as pool:
        texts = pool.map(
            lambda number: client.completions.create(model=MODEL, prompt=f"{number}", max_tokens=5), range(16)
        )
        assert all(answer.usage is not None for answer in texts)
