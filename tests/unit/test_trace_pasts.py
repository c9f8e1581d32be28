"""A trace drafts as the engine did: it brings what the drafter had before its window."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from evospec.align.batch import collate
from evospec.align.forward import draft_states
from evospec.align.recorder import TraceRecorder
from evospec.align.trace import Trace
from evospec.config import AlignmentConfig, EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import Window
from evospec.models.target import Target
from evospec.models.unroll import unroll
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target

STEPS = 3
FINGERPRINTS = Fingerprints(target="t", drafter="d", tokenizer="k")
CPU = torch.device("cpu")
SHARED = tuple(random.Random(0).choices(range(256), k=70))


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return tiny_drafter(target)


def traces_of(
    target: Target, drafter: Drafter, requests: list[Request], max_batch: int, **settings: object
) -> list[Trace]:
    target.tap(drafter.config.tap_layers)
    chosen = {"drafting": "chain", "draft_length": 4, "prefill_chunk": 24, "max_length": 256} | settings
    alignment = AlignmentConfig(trace_top_k=4, trace_positions=32)
    engine = Engine(
        target,
        drafter,
        EngineConfig.model_validate({**chosen, "max_batch": max_batch}),
        FINGERPRINTS,
        learners=Learners(recorder=TraceRecorder(alignment, FINGERPRINTS), trace_k=4),
    )
    traces: list[Trace] = []
    waiting = list(requests)
    while waiting or engine.has_work:
        if waiting:
            engine.admit(waiting.pop(0))
        engine.step()
        traces += engine.take_traces()
    return traces


def requests(count: int) -> list[Request]:
    """Prompts of different lengths, half of them with a beginning in common, and answers that end apart."""
    rng = random.Random(count)
    return [
        Request(
            str(number),
            (SHARED if number % 2 else ()) + tuple(rng.choices(range(256), k=rng.randrange(3, 90))),
            SamplingParams(max_tokens=rng.randrange(12, 60), ignore_eos=True),
        )
        for number in range(count)
    ]


@torch.inference_mode()
def states_over(target: Target, drafter: Drafter, tokens: tuple[int, ...]) -> list[Tensor]:
    """Draft states from every position of a whole text, from the target's own features, as traces round
    them, [positions, hidden] per step."""
    ids = torch.tensor([tokens])
    window = Window.from_start(1, len(tokens), ids.device)
    features = target.forward(ids, window, target.new_cache(1, len(tokens))).features
    assert features is not None
    embeddings = drafter.tables(target.tables).embed(torch.nn.functional.pad(ids[:, 1:], (0, STEPS)))
    return [states[0] for states in unroll(drafter, features.bfloat16().float(), embeddings, STEPS)]


def error(target: Target, drafter: Drafter, traces: list[Trace], texts: list[tuple[int, ...]]) -> float:
    """Of the draft states from traces against those over whole texts, in parts of these: the worst position
    of all whose drafts lie in the text."""
    worst = 0.0
    for trace in traces:
        (text,) = (text for text in texts if holds(text, trace))
        expected = states_over(target, drafter, text)
        found = draft_states(drafter, {}, drafter.tables(target.tables), collate([trace], CPU), STEPS)
        roots = trace.width - STEPS
        for reference, states in zip(expected, found, strict=True):
            right = reference[trace.start : trace.start + roots]
            gap = (states[0, :roots] - right).norm(dim=-1) / right.norm(dim=-1)
            worst = max(worst, float(gap.max())) if roots > 0 else worst
    return worst


def holds(text: tuple[int, ...], trace: Trace) -> bool:
    return list(text[trace.start : trace.start + trace.width + 1]) == trace.token_ids.tolist()


def texts_of(target: Target, asked: list[Request]) -> list[tuple[int, ...]]:
    """Prompts with plain decoding's answers."""
    texts = []
    for request in asked:
        engine = Engine(target, None, EngineConfig(max_batch=1, max_length=256), FINGERPRINTS)
        engine.admit(request)
        text = list(request.prompt_ids)
        while engine.has_work:
            for output in engine.step():
                text += output.tokens
        texts.append(tuple(text))
    return texts


@pytest.mark.parametrize(
    ("max_batch", "settings"),
    [
        (1, {}),
        (3, {"overlap": "on"}),
        (3, {"drafting": "tree", "tree_depth": 3, "tree_beam": 2, "tree_nodes": 7, "overlap": "on"}),
        (4, {"drafting": "auto"}),
    ],
)
def test_drafts_from_traces_are_those_that_the_engine_made(
    target: Target, drafter: Drafter, max_batch: int, settings: dict[str, object]
) -> None:
    """Through chunks of prompts, prefixes in common, slots that move and cycles that do not draft."""
    asked = requests(9)
    traces = traces_of(target, drafter, asked, max_batch, **settings)
    texts = texts_of(target, asked)
    assert sum(trace.past_pairs > 0 for trace in traces) >= len(asked)
    assert error(target, drafter, traces, texts) < 0.05  # of bfloat16
    blind = [replace(trace, past=trace.past[:, :, :0]) for trace in traces]
    assert error(target, drafter, blind, texts) > 0.3


def test_a_past_holds_no_more_than_was_asked_for(target: Target, drafter: Drafter) -> None:
    traces = traces_of(target, drafter, requests(4), 2)
    for trace in traces:
        assert trace.past_pairs == trace.start
        assert np.isfinite(trace.past).all()
