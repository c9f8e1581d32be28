"""One sample, learned by heart, must be drafted whole in serving: nothing is off by one anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evospec.config import EngineConfig
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.models.drafter import Drafter
from evospec.training.corpus import Document, write_corpus
from evospec.training.plan import TrainingPlan
from evospec.training.trainer import DrafterTrainer
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target

PROMPT = tuple(range(40, 60))


def greedy(engine: Engine, tokens: int) -> list[int]:
    engine.admit(Request("r", PROMPT, SamplingParams(max_tokens=tokens, ignore_eos=True)))
    written: list[int] = []
    while engine.has_work:
        for output in engine.step():
            written += output.tokens
    return written


def test_an_overfitted_drafter_has_whole_drafts_accepted(tmp_path) -> None:
    target = tiny_target()
    with torch.no_grad():
        target.model.model.norm.weight.mul_(8)  # certain choices: near-ties are no test of alignment
    fingerprints = Fingerprints(target="t", drafter="d", tokenizer="k")
    plain = Engine(target, None, EngineConfig(max_length=200), fingerprints)
    text = greedy(plain, 61)
    corpus = write_corpus([Document(np.array([*PROMPT, *text]), len(PROMPT))] * 4, tmp_path, {})

    drafter: Drafter = tiny_drafter(target).requires_grad_(True)
    target.tap(drafter.config.tap_layers)
    plan = TrainingPlan(
        minutes=10.0, optimizer_steps=150, learning_rate=5e-3, tokens_per_batch=512, weight_decay=0.0
    )
    torch.manual_seed(0)
    trainer = DrafterTrainer(target, drafter, plan)
    trainer.train(corpus, np.arange(4), lambda progress: None)

    engine = Engine(target, trainer.export(), EngineConfig(max_length=200, drafting="chain"), fingerprints)
    assert greedy(engine, 61) == text
    # Nearly every draft is accepted to its last token; one that is off by one never is.
    assert engine.stats.accepted_per_position[-1] >= 0.7 * engine.stats.drafts
    forced = trainer.evaluate([corpus[0]])
    assert forced.acceptance_length == pytest.approx(engine.stats.acceptance_length, rel=0.1)
