"""Engine to trainer and back with an adapter for each kind of traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evospec.align.build import build_trainer
from evospec.align.trace import floats_of
from evospec.align.trace_codec import encode
from evospec.config import Config
from evospec.engine.build import load_engine
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from tests.tiny import tiny_folders

KINDS = 3


WAYS: tuple[dict[str, object], ...] = ({}, {"method": "full-parameter", "publish_rank": 4})


@pytest.fixture(scope="module", params=WAYS, ids=str)
def config(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Config:
    root: Path = tmp_path_factory.mktemp("tiny")
    folders = tiny_folders(root)
    return Config.model_validate(
        {
            "model": {
                "target": str(folders.target),
                "drafter": str(folders.drafter),
                "dtype": "float32",
                "device": "cpu",
            },
            "engine": {"max_batch": 3, "drafting": "chain", "draft_length": 3},
            "vocabulary": {"capacity": 128, "core": 32},
            "alignment": {
                "trace_positions": 32,
                "trace_top_k": 8,
                "min_traces": 4,
                "learning_rate": 3e-3,
                "adapters": KINDS,
                **request.param,
            },
        }
    )


def asked(number: int, temperature: float) -> Request:
    """Prompts of a kind begin alike."""
    kind, rng = number % KINDS, np.random.default_rng(number)
    prompt = np.concatenate((np.arange(50) % 7 + 80 * kind, rng.integers(0, 256, 6)))
    sampling = SamplingParams(temperature=temperature, seed=number, max_tokens=40, ignore_eos=True)
    return Request(f"{kind}:{number}", tuple(prompt.tolist()), sampling)


def decoded(engine: Engine, first: int, last: int, temperature: float = 0.0) -> dict[str, list[int]]:
    texts: dict[str, list[int]] = {}
    for number in range(first, last):
        engine.admit(asked(number, temperature))
    while engine.has_work:
        for output in engine.step():
            texts.setdefault(output.request_id, []).extend(output.tokens)
    return texts


def test_requests_draft_with_the_adapter_that_learns_from_their_traces(config: Config) -> None:
    engine, trainer = load_engine(config), build_trainer(config)
    decoded(engine, 0, 51, temperature=1.0)  # sampling keeps a random model from looping
    for trace in engine.take_traces():
        trainer.add(encode(trace))
    assert trainer.replay.clusters.kinds == KINDS
    learned = set()
    while trainer.due:
        learned.add(trainer.step().kind)
    assert learned == set(range(KINDS))
    assert trainer.gate().kinds.keys() == learned
    adapter = trainer.candidate(1)
    trainer.accept()
    engine.swap_adapter(adapter)
    assert engine.stats.adapter_version == 1

    before = dict(engine.stats.requests_per_choice)
    texts = decoded(engine, 100, 109)
    assert texts == decoded(load_engine(config), 100, 109)
    traces = engine.take_traces()
    assert adapter.bank is not None
    contexts = torch.from_numpy(np.stack([floats_of(trace.context) for trace in traces]))
    told = adapter.bank.routes.choose(contexts).tolist()
    by_context = {trace.context.tobytes(): choice for trace, choice in zip(traces, told, strict=True)}
    counted = {choice: list(by_context.values()).count(choice) for choice in range(1, KINDS + 1)}
    made = engine.stats.requests_per_choice
    assert {choice: made.get(choice, 0) - before.get(choice, 0) for choice in counted} == counted
    assert trainer.replay.clusters.kinds_of(traces).tolist() == [choice - 1 for choice in told]
    assert sorted(counted.values()) == [3, 3, 3]
