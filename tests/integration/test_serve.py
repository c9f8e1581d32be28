"""The whole of it on real Ray Serve, Valkey and Qdrant, with a tiny random model in float32."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM

from actors.names import ALIGNER, NAMESPACE
from actors.status import ReplicaStatus
from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    RegistryConfig,
    RolloutConfig,
    SemanticConfig,
    ServeConfig,
    VocabularyConfig,
)
from evospec.models.adapter import AdapterWeights
from services.local_cluster import LocalCluster
from services.registry import open_registry
from tests.tiny import TinyFolders, tiny_folders, tiny_tokenizer
from tests.unit.actors.fakes import versioned, wait_until

MODEL = "tiny"
LENGTH = 512
MOST_ROUNDS = 20  # of 50 requests, for a fast machine to see a version roll out


@dataclass(frozen=True, slots=True)
class Served:
    """A running cluster and the client that users have."""

    cluster: LocalCluster
    client: OpenAI
    folders: TinyFolders

    def replicas(self) -> list[ReplicaStatus]:
        return self.cluster.replicas()

    def acknowledged(self) -> set[int]:
        """Versions that the replicas of now run, by the registry's word."""
        acknowledged = self.cluster.acknowledgements()
        return {acknowledged.get(status.replica, -1) for status in self.replicas()}

    def complete(self, prompt: str, max_tokens: int = 32) -> Any:
        return self.client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folders = tiny_folders(tmp_path_factory.mktemp("tiny"))
    config = Config(
        model=ModelConfig(
            target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32", threads=1
        ),
        engine=EngineConfig(max_batch=4, max_length=LENGTH, draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
        semantic=SemanticConfig(refresh_tokens=16),
        # Any candidate passes: this is about the way of a version, not about its worth.
        alignment=AlignmentConfig(
            trace_positions=32, min_traces=4, steps_per_version=2, steps_per_trace=0.5, min_gain=-10.0
        ),
        registry=RegistryConfig(poll_s=0.5),
        rollout=RolloutConfig(canary=False),  # see test_rollout.py
        serve=ServeConfig(port=0, replicas=2, model_name=MODEL, max_queued_requests=8),
    )
    with LocalCluster(config) as cluster:
        yield Served(cluster, OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0), folders)


def in_background(work: Callable[[], object]) -> Callable[[], None]:
    """Repeats `work` on a thread until the returned function is called."""
    stopping = threading.Event()

    def repeat() -> None:
        while not stopping.is_set():
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()

    def stop() -> None:
        stopping.set()
        thread.join(60)

    return stop


# --- the API, as the openai client sees it ---


def test_models_and_health(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == [MODEL]
    assert served.client.models.retrieve(MODEL).id == MODEL
    assert httpx.get(f"{served.cluster.url}/health").json() == {"status": "ok"}


def test_chat_whole_and_streamed_are_the_same(served: Served) -> None:
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a story"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = served.client.chat.completions.create(**asked)
    stream = served.client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    details = whole.usage.model_dump()["evospec"]
    assert details["cycles"] >= 1
    assert details["drafted"] >= details["accepted"] >= 0


def test_sampling_with_a_seed_is_reproducible_in_its_prompt_and_limits(served: Served) -> None:
    first = served.client.completions.create(
        model=MODEL, prompt="Once", max_tokens=24, temperature=0.9, top_p=0.9, seed=5
    )
    assert first.usage is not None
    assert first.usage.prompt_tokens == 4
    assert 1 <= first.usage.completion_tokens <= 24


def test_a_stop_string_cuts_the_text(served: Served) -> None:
    full = served.complete("stop here", 60).choices[0].text
    stop = full[10:13]
    cut = served.client.completions.create(
        model=MODEL,
        prompt="stop here",
        max_tokens=60,
        temperature=0,
        stop=[stop],
        extra_body={"ignore_eos": True},
    )
    assert cut.choices[0].text == full[: full.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_errors_are_the_clients_own_exceptions(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        served.client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model=MODEL, prompt="x" * (LENGTH + 1))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], presence_penalty=0.5
        )
    assert caught.value.param == "presence_penalty"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (json.dumps({"model": MODEL, "prompt": "x", "frobnicate": 1}).encode(), 400),
        (json.dumps({"model": MODEL, "prompt": "x", "max_tokens": "many"}).encode(), 400),
        (json.dumps({"model": MODEL, "prompt": [99999]}).encode(), 400),
        (json.dumps({"model": "other", "prompt": "x"}).encode(), 404),
    ],
)
def test_bad_input_by_hand(served: Served, body: bytes, status: int) -> None:
    response = httpx.post(f"{served.cluster.url}/v1/completions", content=body)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text


# --- exactness, with everything moving ---


def test_greedy_output_is_the_targets_own_while_versions_roll_out(served: Served) -> None:
    prompts = [
        f"{number} prompts, each its own: {chr(97 + number % 26) * (number % 7 + 1)}" for number in range(50)
    ]
    alone = [served.complete(prompt, 64) for prompt in prompts[:5]]
    expected = [expected_tokens(served.folders, prompt, 64) for prompt in prompts]
    assert [answer.choices[0].token_ids for answer in alone] == expected[:5]
    epochs: set[int] = set()
    versions: set[int] = set()
    for _ in range(MOST_ROUNDS):
        with ThreadPoolExecutor(8) as pool:
            batched = list(pool.map(lambda prompt: served.complete(prompt, 64), prompts))
        assert [answer.choices[0].token_ids for answer in batched] == expected
        usages = [answer.usage.model_dump()["evospec"] for answer in batched]
        epochs |= {usage["vocabulary_epoch"] for usage in usages}
        versions |= {usage["adapter_version"] for usage in usages}
        if len(epochs) > 1 and len(versions) > 1:
            return
    pytest.fail(f"nothing moved: vocabulary epochs {epochs}, adapter versions {versions}")


def expected_tokens(folders: TinyFolders, prompt: str, count: int) -> list[int]:
    """What transformers generates greedily, without our code."""
    model = AutoModelForCausalLM.from_pretrained(folders.target, dtype=torch.float32)
    ids = torch.tensor([tiny_tokenizer()(prompt).input_ids])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens


# --- traces, versions, index ---


def test_versions_reach_both_replicas_and_are_acknowledged(served: Served) -> None:
    stop = in_background(lambda: served.complete("learn from this", 48))
    try:
        wait_until(lambda: min(served.acknowledged()) >= 2, 120)
    finally:
        stop()
    statuses = served.replicas()
    assert len(statuses) == 2
    assert all(status.weights.version >= 2 for status in statuses)
    assert all(status.engine.adapter_version >= 2 for status in statuses)
    assert all(status.traces.sent > 0 for status in statuses)
    aligner = served.cluster.aligner()
    assert aligner is not None
    assert aligner.trainer.refused_traces == 0
    assert aligner.publisher.published >= 2


def test_the_token_index_is_written_and_found(served: Served) -> None:
    for number in range(4):
        served.complete(f"the same context every time {number}", 40)
    wait_until(lambda: served.cluster.index_points() > 0, 60)
    served.complete("the same context every time 9", 40)
    wait_until(lambda: sum(status.index.hits for status in served.replicas()) > 0, 60)
    assert sum(status.index.failed for status in served.replicas()) == 0


# --- what goes wrong ---


def test_a_client_that_leaves_frees_its_slot(served: Served) -> None:
    before = sum(status.engine.requests_cancelled for status in served.replicas())
    asked = {"model": MODEL, "prompt": "x", "max_tokens": LENGTH, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{served.cluster.url}/v1/completions", json=asked, timeout=60) as response:
        for _ in zip(range(3), response.iter_lines(), strict=False):
            continue
    # Without streaming, too.
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.cluster.url}/v1/completions",
            json={**asked, "stream": False},
            timeout=httpx.Timeout(60, read=0.2),
        )
    wait_until(
        lambda: sum(status.engine.requests_cancelled for status in served.replicas()) == before + 2, 60
    )
    assert all(status.engine.running == 0 for status in served.replicas())


def test_overload_is_429_and_the_rest_is_served(served: Served) -> None:
    @dataclass
    class Outcome:
        statuses: list[int] = field(default_factory=list)
        retry_after: set[str | None] = field(default_factory=set)

    async def flood() -> Outcome:
        outcome = Outcome()
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            asked = {"model": MODEL, "prompt": "x", "max_tokens": 200, "ignore_eos": True}
            calls = [client.post(f"{served.cluster.url}/v1/completions", json=asked) for _ in range(60)]
            for response in await asyncio.gather(*calls):
                outcome.statuses.append(response.status_code)
                if response.status_code == 429:
                    assert response.json()["error"]["code"] == "overloaded"
                    outcome.retry_after.add(response.headers.get("retry-after"))
        return outcome

    outcome = asyncio.run(flood())
    assert set(outcome.statuses) == {200, 429}
    assert outcome.statuses.count(200) >= 8
    assert outcome.retry_after == {"1"}


def test_without_its_aligner_serving_goes_on_and_it_comes_back(served: Served) -> None:
    import ray

    before = served.cluster.aligner()
    assert before is not None
    ray.kill(ray.get_actor(ALIGNER, namespace=NAMESPACE), no_restart=False)
    for number in range(4):
        assert served.complete(f"nobody learns {number}", 24).usage.completion_tokens == 24
    wait_until(lambda: _epoch(served) > before.publisher.epoch, 120)
    after = served.cluster.aligner()
    assert after is not None
    assert after.publisher.version >= before.publisher.version
    stop = in_background(lambda: served.complete("learn from this again", 48))
    try:
        wait_until(lambda: min(served.acknowledged()) > before.publisher.version, 120)
    finally:
        stop()


def test_when_their_keeper_dies_all_actors_beside_the_replicas_come_back(served: Served) -> None:
    import ray

    from services.app import COMPANIONS

    before = served.cluster.aligner()
    assert before is not None
    (name,) = (
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"#{COMPANIONS}#" in actor["name"]
    )
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)
    for number in range(4):
        assert served.complete(f"nobody keeps them {number}", 24).usage.completion_tokens == 24
    wait_until(lambda: _epoch(served) > before.publisher.epoch, 120)
    assert served.cluster.index_points() >= 0


def test_a_replica_that_died_is_replaced_and_starts_with_the_current_version(served: Served) -> None:
    import ray

    version = min(status.weights.version for status in served.replicas())
    before = {status.replica for status in served.replicas()}
    victim = min(before)
    (name,) = (
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].endswith(victim)
    )
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)
    for number in range(8):  # the other one serves on; what the victim had is given to it
        assert served.complete(f"still served {number}", 16).usage.completion_tokens == 16
    wait_until(lambda: len(_running(served) - before) == 1, 120)
    (fresh,) = (status for status in served.replicas() if status.replica not in before)
    assert fresh.engine.adapter_version == fresh.weights.version >= version >= 1


def _running(served: Served) -> set[str]:
    from ray.exceptions import RayError

    try:
        return {status.replica for status in served.replicas()}
    except RayError:  # one of those asked is the one that died
        return set()


def _epoch(served: Served) -> int:
    from services.ray_runtime import ClusterError

    try:
        status = served.cluster.aligner()
    except ClusterError:  # between two lives
        return 0
    return status.publisher.epoch if status is not None else 0


def test_a_version_full_of_nan_is_refused_by_all_and_serving_goes_on(served: Served) -> None:
    with closing(open_registry(served.cluster.config.registry)) as registry:
        epoch = registry.acquire_epoch()  # shuts the aligner out
        wait_until(lambda: not registry.rollout().candidate, 60)
        good = registry.rollout().stable
        wait_until(lambda: served.acknowledged() == {good}, 60)
        nan = AdapterWeights(
            0, {"fc.lora_a": torch.full((1, 96), torch.nan), "fc.lora_b": torch.zeros(32, 1)}
        )
        fingerprints = registry.fetch(good).manifest.fingerprints
        bad = versioned(good + 100, epoch=epoch, fingerprints=fingerprints, blob=nan.to_bytes())
        registry.publish(bad.manifest, bad.blob)
    wait_until(lambda: all(status.weights.refused == 1 for status in served.replicas()), 60)
    assert served.acknowledged() == {good}
    assert served.complete("still here", 16).usage.model_dump()["evospec"]["adapter_version"] == good


def test_counters_are_exported_for_prometheus_under_vllms_names(served: Served) -> None:
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def exported() -> set[str]:
        text = httpx.get(address, trust_env=False).text
        return {line.partition("{")[0] for line in text.splitlines() if 'model_name="tiny"' in line}

    wanted = {
        "ray_spec_decode_num_drafts_total",
        "ray_spec_decode_num_draft_tokens_total",
        "ray_spec_decode_num_accepted_tokens_total",
        "ray_spec_decode_num_accepted_tokens_per_pos_total",
        "ray_evospec_adapter_version",
    }
    wait_until(lambda: wanted <= exported(), 60)
