"""Engine to trainer and back: traces of real decoding train an adapter that the engine takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evospec.align.build import build_trainer
from evospec.align.trace import Trace, floats_of
from evospec.align.trace_codec import encode
from evospec.config import AlignmentConfig, Config, VocabularyConfig
from evospec.engine.build import load_engine
from evospec.engine.engine import Engine
from evospec.engine.passes import Launched, Step
from evospec.engine.request import Request, SamplingParams
from evospec.engine.runner import Runner
from evospec.errors import DrafterMismatchError, EvoSpecError, WireError
from evospec.models.drafter_store import save_drafter
from evospec.models.kv_cache import Window
from evospec.vocab.head_rows import HeadView
from evospec.vocab.tenants import tenant_key
from tests.tiny import TinyFolders, tiny_drafter, tiny_folders, tiny_target
from tests.unit.align_tiny import random_trace


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


def config(folders: TinyFolders, **model: object) -> Config:
    return Config.model_validate(
        {
            "model": {
                "target": str(folders.target),
                "drafter": str(folders.drafter),
                "dtype": "float32",
                "device": "cpu",
                **model,
            },
            "engine": {"max_batch": 3, "draft_length": 3},
            "vocabulary": {"capacity": 128, "core": 32},
            "alignment": {"trace_positions": 32, "trace_top_k": 8, "min_traces": 4, "learning_rate": 3e-3},
        }
    )


def decoded(
    engine: Engine, requests: int, *, trace: bool = True, temperature: float = 1.0
) -> list[tuple[int, ...]]:
    """Runs requests to their end; returns all tokens of each, prompt first."""
    rng = np.random.default_rng(0)
    texts: dict[str, list[int]] = {}
    for number in range(requests):
        prompt = tuple(rng.integers(0, 256, 20 + number).tolist())
        texts[str(number)] = list(prompt)
        # Sampling keeps a random model from looping.
        sampling = SamplingParams(temperature=temperature, seed=number, max_tokens=60, ignore_eos=True)
        engine.admit(Request(str(number), prompt, sampling, trace=trace))
    while engine.has_work:
        for output in engine.step():
            texts[output.request_id] += output.tokens
    return [tuple(text) for text in texts.values()]


def owner(trace: Trace, texts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The one text that the trace is a window of."""
    window = tuple(trace.token_ids.tolist())
    (text,) = (t for t in texts if t[trace.start : trace.start + len(window)] == window)
    return text


def test_recorded_traces_are_what_the_target_computes(folders: TinyFolders) -> None:
    settings = config(folders)
    engine, trainer = load_engine(settings), build_trainer(settings)
    texts = decoded(engine, requests=4)
    traces = engine.take_traces()
    assert len(traces) >= 8
    target = engine.target
    for trace in traces:
        text = owner(trace, texts)
        cache = target.new_cache(1, len(text))
        output = target.forward(torch.tensor([text]), Window.of([0], len(text), target.device), cache)
        assert output.features is not None
        about = torch.nn.functional.normalize(output.hidden[0, : trace.prompt_length].mean(dim=0), dim=0)
        torch.testing.assert_close(floats_of(trace.context), about.numpy(), rtol=2**-7, atol=1e-4)
        rows = slice(trace.start, trace.start + trace.width)
        bits = torch.from_numpy(trace.features.astype(np.int32)).to(torch.int16).view(torch.bfloat16)
        torch.testing.assert_close(bits.float(), output.features[0, rows], rtol=2**-7, atol=1e-3)
        logprobs = target.logits(output.hidden[0, rows]).log_softmax(-1)
        scored = trace.generated
        ids = torch.from_numpy(trace.top_ids[scored]).long()
        recorded = torch.from_numpy(trace.top_logprobs[scored].astype(np.float32))
        torch.testing.assert_close(logprobs[scored].gather(-1, ids), recorded, rtol=2**-10, atol=1e-3)
        torch.testing.assert_close(logprobs[scored].topk(8).values, recorded, rtol=2**-10, atol=1e-3)
        trainer.add(trace)
    accepted = sum(int(trace.accepted.sum()) for trace in traces)
    assert accepted <= engine.stats.accepted_tokens
    assert trainer.counts.refused_traces == 0


def test_the_loop_closes(folders: TinyFolders) -> None:
    settings = config(folders)
    engine, trainer = load_engine(settings), build_trainer(settings)
    decoded(engine, requests=12)
    for trace in engine.take_traces():
        trainer.add(encode(trace))
    assert trainer.ready
    losses = [trainer.step().loss for _ in range(12)]
    assert losses[-1] < losses[0]
    assert trainer.gate().positions > 50
    adapter = trainer.candidate(1)
    trainer.accept()
    engine.swap_adapter(adapter)
    assert engine.stats.adapter_version == 1
    again = build_trainer(settings)
    again.restore(adapter)
    assert again.current.version == 1
    fresh = load_engine(settings)
    assert decoded(engine, requests=3, temperature=0.0) == decoded(fresh, requests=3, temperature=0.0)


def test_versions_bring_the_successors_that_engines_look_up(folders: TinyFolders) -> None:
    settings = config(folders)
    engine, trainer = load_engine(settings), build_trainer(settings)
    texts = decoded(engine, requests=4)
    for trace in engine.take_traces():
        trainer.add(encode(trace))
    ((key, table),) = trainer.candidate(1).successors.items()
    assert key == tenant_key("")
    assert set(table.heads.tolist()) <= {token for text in texts for token in text}
    assert len(table) > 50
    assert not set(table.successors.ravel().tolist()) & set(range(32))  # the core


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": VocabularyConfig(policy="full")},
        {"vocabulary": VocabularyConfig(policy="evospec[context]")},
        {"vocabulary": VocabularyConfig(sources=("context", "semantic"))},
        {"alignment": AlignmentConfig(trace_positions=32, trace_top_k=8, successor_mb=0.0)},
    ],
    ids=["no sources", "another source by name", "other sources", "no room"],
)
def test_nothing_is_counted_that_no_replica_looks_up(
    folders: TinyFolders, changes: dict[str, object]
) -> None:
    settings = config(folders)
    engine, trainer = load_engine(settings), build_trainer(settings.model_copy(update=changes))
    decoded(engine, requests=1)
    for trace in engine.take_traces():
        trainer.add(encode(trace))
    assert trainer.candidate(1).successors == {}


def test_opted_out_requests_leave_no_traces(folders: TinyFolders) -> None:
    engine = load_engine(config(folders))
    decoded(engine, requests=3, trace=False)
    assert engine.take_traces() == []


def test_cycles_report_alike_whether_requests_opt_out_or_not(
    folders: TinyFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are captured by what cycles report: requests that opt out need none of their own."""
    reported: list[int] = []
    launch = Runner.launch

    def noted(self: Runner, step: Step, head: HeadView) -> Launched:
        reported.append(step.report.wanted.traced)
        return launch(self, step, head)

    monkeypatch.setattr(Runner, "launch", noted)
    engine = load_engine(config(folders))
    decoded(engine, requests=1)
    decoded(engine, requests=1, trace=False)
    assert len(reported) > 2
    assert set(reported) == {config(folders).alignment.trace_top_k}


def test_traces_of_another_drafter_are_refused(folders: TinyFolders, tmp_path: Path) -> None:
    engine = load_engine(config(folders))
    decoded(engine, requests=1)
    (trace, *_) = engine.take_traces()
    target = tiny_target()
    save_drafter(tiny_drafter(target, seed=9), torch.arange(target.vocab_size), tmp_path / "other")
    other = TinyFolders(folders.target, tmp_path / "other")
    with pytest.raises(WireError, match="comes from"):
        build_trainer(config(other)).add(encode(trace))


def test_traces_of_another_shape_are_refused(folders: TinyFolders) -> None:
    trainer = build_trainer(config(folders))
    with pytest.raises(WireError, match=r"top_ids has .* bytes"):
        trainer.add(encode(random_trace(0)))


def test_no_drafter_is_one_clear_line(folders: TinyFolders) -> None:
    with pytest.raises(EvoSpecError, match=r"set model\.drafter"):
        build_trainer(config(folders, drafter=None))


def test_a_drafter_of_another_vocabulary_is_refused(folders: TinyFolders, tmp_path: Path) -> None:
    target = tiny_target(vocab=300)
    save_drafter(tiny_drafter(target), torch.arange(300), tmp_path / "wide")
    with pytest.raises(DrafterMismatchError, match="300"):
        build_trainer(config(TinyFolders(folders.target, tmp_path / "wide")))
