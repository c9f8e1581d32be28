"""What a cycle tells the host arrives as it was on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.decoding.best import best_tokens
from evospec.decoding.verify import Verdict
from evospec.engine.host_copy import ReportBuffer
from evospec.engine.report import ReportLayout, Wanted

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 8), st.integers(0, 2**31))
def test_best_tokens_are_the_largest(vocab: int, k: int, seed: int) -> None:
    k = min(k, vocab)
    logits = torch.randn(2, 3, vocab, generator=torch.Generator().manual_seed(seed))
    best = best_tokens(logits, k, totals=True)
    expected = logits.topk(k, dim=-1)
    assert torch.equal(best.scores, expected.values)
    assert torch.equal(logits.gather(-1, best.ids), expected.values)
    assert torch.equal(best.choices, logits.argmax(dim=-1))
    assert best.totals is not None
    assert torch.equal(best.totals, logits.logsumexp(dim=-1))
    assert all(len(set(row.tolist())) == k for row in best.ids.flatten(0, 1))


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize(
    "wanted",
    [Wanted(), Wanted(ranked=3), Wanted(ranked=2, traced=5), Wanted(drafted=True), Wanted(2, 3, True)],
)
def test_a_report_is_read_as_it_was_packed(wanted: Wanted, covered: bool, tree: bool) -> None:
    rows, places, vocab = 3, 4, 700
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, places, vocab, generator=generator)
    tokens = torch.randint(0, vocab, (rows, places), generator=generator)
    paths = torch.tensor([[0, 1, 3, 0], [0, 2, 4, 5], [0, 1, 2, 6]]) if tree else None
    verdict = Verdict(torch.tensor([2, 0, 3]), tokens, paths)
    active = (torch.arange(vocab) % 2).long() if covered else None
    drafts = torch.randint(0, vocab, (rows, 6), generator=generator)
    layout = ReportLayout(places, nodes=6, tree=tree, covered=covered, wanted=wanted)
    best = best_tokens(logits, wanted.best, totals=wanted.traced > 0)
    packed = layout.pack(verdict, best, active, drafts)
    assert packed.shape == (rows, layout.columns)

    buffer = ReportBuffer(packed.numel() + 9, CPU)
    buffer.post(packed)
    sent = buffer.send(packed.numel())
    buffer.post(torch.zeros_like(packed))
    buffer.send(packed.numel())
    report = layout.read(sent.wait(2, layout.columns))  # the last row holds no request
    buffer.send(packed.numel())
    assert report.accepted == [2, 0]
    assert report.tokens == tokens[:2].tolist()
    assert report.first == [True, False]
    for row in range(2):
        odd = (tokens[row, :3] % 2 == 1).tolist()
        assert report.covered(row, 3) == (odd if covered else [True] * 3)
    expected = logits[:2].topk(max(wanted.best, 1), dim=-1).indices[..., : wanted.best]
    assert report.best().tolist() == expected.tolist()
    if wanted.drafted:
        assert report.drafts().tolist() == drafts[:2].tolist()
    logprobs = torch.log_softmax(logits[:2], dim=-1).topk(max(wanted.traced, 1), dim=-1).values
    np.testing.assert_allclose(report.logprobs(), logprobs[..., : wanted.traced], atol=1e-5)
