"""What a cycle tells the host arrives as it was on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.decoding.verify import Verdict
from evospec.engine.contexts import ContextVectors
from evospec.engine.host_copy import ReportBuffer, fetch
from evospec.engine.report import ReportLayout, Wanted, best_tokens

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 8), st.integers(0, 2**31))
def test_best_tokens_are_the_largest(vocab: int, k: int, seed: int) -> None:
    k = min(k, vocab)
    logits = torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(seed))
    values, ids = best_tokens(logits, k)
    expected = logits.topk(k, dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(logits.gather(-1, ids), expected.values)
    assert all(len(set(row.tolist())) == k for row in ids.flatten(0, 1))


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize("wanted", [Wanted(), Wanted(ranked=3), Wanted(ranked=2, traced=5)])
def test_a_report_is_read_as_it_was_packed(wanted: Wanted, covered: bool, tree: bool) -> None:
    rows, places, vocab = 3, 4, 700
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, places, vocab, generator=generator)
    tokens = torch.randint(0, vocab, (rows, places), generator=generator)
    paths = torch.tensor([[0, 1, 3, 0], [0, 2, 4, 5], [0, 1, 2, 6]]) if tree else None
    verdict = Verdict(torch.tensor([2, 0, 3]), tokens, paths)
    active = (torch.arange(vocab) % 2).long() if covered else None
    layout = ReportLayout(places, tree=tree, covered=covered, wanted=wanted)
    packed = layout.pack(verdict, logits, active)
    assert packed.shape == (rows, layout.columns)

    buffer = ReportBuffer(packed.numel() + 9, CPU)
    buffer.post(packed)
    buffer.seal()
    report = layout.read(buffer.wait(2, layout.columns))  # the last row holds no request
    buffer.post(torch.zeros_like(packed))
    assert report.accepted == [2, 0]
    assert report.tokens == tokens[:2].tolist()
    assert report.first == [True, False]
    for row in range(2):
        odd = (tokens[row, :3] % 2 == 1).tolist()
        assert report.covered(row, 3) == (odd if covered else [True] * 3)
    expected = logits[:2].topk(max(wanted.best, 1), dim=-1).indices[..., : wanted.best]
    assert report.best().tolist() == expected.tolist()
    logprobs = torch.log_softmax(logits[:2], dim=-1).topk(max(wanted.traced, 1), dim=-1).values
    np.testing.assert_allclose(report.logprobs(), logprobs[..., : wanted.traced], atol=1e-5)


def test_contexts_decay_by_what_is_emitted() -> None:
    contexts = ContextVectors(3, 4, places=3, decay=0.9, device=CPU)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randn(5, 4, generator=generator)
    contexts.start(1, prompt)
    hidden = torch.randn(2, 3, 4, generator=generator)
    contexts.advance(hidden, torch.tensor([0, 2]))
    expected = prompt.mean(0) * 0.9**2 + hidden[1, :2].mean(0) * (1 - 0.9**2)
    torch.testing.assert_close(contexts.means[1], expected)
    assert contexts.means[0].tolist() == [0.0] * 4  # nothing emitted, nothing learned
    contexts.move(1, 2)
    vector = fetch(contexts.vector(2))
    contexts.means.zero_()
    torch.testing.assert_close(vector.tensor(), expected / expected.norm())
