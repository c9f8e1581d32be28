"""Two models behind one endpoint, each with its own replicas, aligner and token index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from evospec.config import Config
from services.local_cluster import LocalCluster
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.actors.fakes import wait_until

NAMES = ("small", "large")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folders = {
        name: tiny_folders(tmp_path_factory.mktemp(name), seed=number) for number, name in enumerate(NAMES)
    }
    config = Config.model_validate(
        {
            "model": {"device": "cpu", "dtype": "float32", "threads": 1},
            "engine": {"max_batch": 2, "max_length": 256, "draft_length": 3},
            "vocabulary": {"capacity": 128, "core": 32, "context_window": 64},
            "semantic": {"refresh_tokens": 16},
            "alignment": {"trace_positions": 32, "min_traces": 1000},
            "serve": {"port": 0},
            "models": [{"name": name, "model": _model(own)} for name, own in folders.items()],
        }
    )
    with LocalCluster(config) as started:
        yield started


def _model(folders: TinyFolders) -> dict[str, Path | str]:
    return {"target": str(folders.target), "drafter": str(folders.drafter)}


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> OpenAI:
    return OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, model: str, prompt: str = "the same prompt") -> str:
    extra = {"ignore_eos": True}
    done = client.completions.create(
        model=model, prompt=prompt, max_tokens=40, temperature=0, extra_body=extra
    )
    assert done.model == model
    return done.choices[0].text


def test_each_model_answers_under_its_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    assert len({ask(client, name) for name in NAMES}) == 2
    with pytest.raises(NotFoundError, match="'small', 'large'"):
        ask(client, "other")


def test_a_stream_comes_from_the_model_that_is_named(client: OpenAI) -> None:
    extra = {"ignore_eos": True}
    stream = client.completions.create(
        model="large", prompt="the same prompt", max_tokens=40, temperature=0, stream=True, extra_body=extra
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == ask(client, "large")


def test_nothing_is_shared_but_the_address(cluster: LocalCluster, client: OpenAI) -> None:
    """Traces, points and replicas are of the model that was asked."""

    def received(model: str) -> int:
        status = cluster.aligner(model)
        assert status is not None
        return status.progress.received

    before = {name: (received(name), cluster.index_points(name)) for name in NAMES}
    for number in range(4):
        ask(client, "large", f"only one of them is asked {number}")
    wait_until(lambda: received("large") >= before["large"][0] + 4, 60)
    wait_until(lambda: cluster.index_points("large") > before["large"][1], 60)
    assert (received("small"), cluster.index_points("small")) == before["small"]
    fingerprints = {cluster.replicas(name)[0].fingerprints.target for name in NAMES}
    assert len(fingerprints) == 2
