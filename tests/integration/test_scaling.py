"""Replicas that come and go with the load, limits that change without a restart, and an end in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    SemanticConfig,
    ServeConfig,
    VocabularyConfig,
)
from services.limits import NeedsRestartError
from services.local_cluster import LocalCluster
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.actors.fakes import wait_until

MODEL = "tiny"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


def config_of(folders: TinyFolders, **serve: Any) -> Config:
    return Config(
        model=ModelConfig(
            target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32", threads=1
        ),
        engine=EngineConfig(max_batch=2, max_length=512, draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
        semantic=SemanticConfig(enabled=False),
        alignment=AlignmentConfig(enabled=False),
        serve=ServeConfig(port=0, model_name=MODEL, **serve),
    )


@pytest.fixture(scope="module")
def cluster(folders: TinyFolders) -> Iterator[LocalCluster]:
    config = config_of(
        folders,
        max_replicas=2,
        target_ongoing_requests=1.0,
        upscale_delay_s=0.0,
        downscale_delay_s=3.0,
        drain_s=60.0,
        routing="domain",
    )
    with LocalCluster(config) as started:
        yield started


def ask(cluster: LocalCluster, tokens: int = 16, prompt: str = "x", stream: bool = False) -> httpx.Response:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120, trust_env=False)


def names(cluster: LocalCluster) -> set[str]:
    return {status.replica for status in cluster.replicas()}


def test_limits_change_while_replicas_run_on(cluster: LocalCluster) -> None:
    before, asked = names(cluster), cluster._asked
    assert ask(cluster).status_code == 200
    hasty = asked.serve.model_copy(update={"request_timeout_s": 0.001})
    cluster.reconfigure(asked.model_copy(update={"serve": hasty}))
    wait_until(lambda: ask(cluster).status_code == 408, 60)
    cluster.reconfigure(asked)
    wait_until(lambda: ask(cluster).status_code == 200, 60)
    assert names(cluster) == before


def test_what_needs_a_restart_is_refused_by_name(cluster: LocalCluster) -> None:
    asked = cluster._asked
    other = asked.model_copy(update={"engine": asked.engine.model_copy(update={"max_batch": 4})})
    with pytest.raises(NeedsRestartError, match=r"^engine\.max_batch can't change"):
        cluster.reconfigure(other)
    assert ask(cluster).status_code == 200


def test_replicas_follow_the_load_and_no_request_is_lost(cluster: LocalCluster) -> None:
    stopping = threading.Event()
    statuses: list[int] = []

    def load() -> None:
        while not stopping.is_set():
            statuses.append(ask(cluster, tokens=200, prompt="keep going").status_code)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(names(cluster)) == 2, 120)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60)
    # Trickling: the one that goes may have a request when it is told.
    with ThreadPoolExecutor(1) as pool:
        while len(names(cluster)) == 2:
            answer: Future[httpx.Response] = pool.submit(ask, cluster, 100)
            statuses.append(answer.result(60).status_code)
    assert set(statuses) == {200}


def test_running_requests_finish_when_the_server_stops(cluster: LocalCluster) -> None:
    """Last: the server is gone then."""
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        body = {
            "model": MODEL,
            "prompt": "a long story",
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
        }
        url = f"{cluster.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as response:
            for line in response.iter_lines():
                lines.append(line)
                begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(60)
    cluster.stop()
    thread.join(60)
    assert lines[-2:] == ["data: [DONE]", ""]
    assert not any("error" in line for line in lines)
