"""What training compiles on CUDA devices, compiled for the CPU."""

from __future__ import annotations

from shutil import which

import pytest
import torch

from evospec.models.unroll import DraftStep, unroll
from tests.tiny import tiny_drafter, tiny_target


@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_draft_step_changes_nothing() -> None:
    target = tiny_target()
    drafter = tiny_drafter(target).requires_grad_(True).train()
    features = torch.randn(2, 9, drafter.config.feature_size)
    embeddings = torch.randn(2, 11, drafter.config.hidden_size)
    results = []
    for step in (DraftStep.plain(), DraftStep.compiled()):
        states = torch.stack(list(unroll(drafter, features, embeddings, 3, step)))
        gradients = torch.autograd.grad(states.square().sum(), list(drafter.parameters()), allow_unused=True)
        results.append([states, *(each for each in gradients if each is not None)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
