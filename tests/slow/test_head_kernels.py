"""The kernels around the heads choose what the plain operations choose; see `test_kernels`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evospec.decoding.best import BestTokens, best_tokens
from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.engine.contexts import ContextVectors
from evospec.kernels.best import best_scores
from evospec.kernels.head import Chosen, choose
from evospec.kernels.means import advance_means
from evospec.kernels.rows import COUNTS, write_rows
from evospec.models.draft_body import DraftBody
from evospec.models.drafter import Drafter
from evospec.models.kernel_ops import KernelOps
from evospec.models.ops import Norm, TorchOps
from evospec.models.row_choice import RowChoice
from evospec.models.target import Target
from evospec.vocab.head_rows import HeadRows, HeadView
from evospec.vocab.row_update import RowUpdate
from tests.slow.test_kernels import DEVICE, DTYPES, ON_GPU, random
from tests.tiny import tiny_drafter, tiny_model, tiny_target, tiny_tokenizer


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 6, 20])
@pytest.mark.parametrize("columns", [7, 260, 5_000])
def test_best_scores(columns: int, k: int, dtype: torch.dtype) -> None:
    k = min(k, columns)
    scores = random(3, columns, dtype=dtype)
    found, ids = best_scores(scores, k)
    assert torch.equal(found[:, :k], scores.float().topk(k, dim=-1).values)
    assert torch.equal(scores.float().gather(1, ids), found[:, :k])
    assert all(len(set(row.tolist())) == k for row in ids)
    torch.testing.assert_close(found[:, k], scores.float().logsumexp(dim=-1))


@pytest.mark.parametrize("at", [(3, 4), (100, 300), (2, 4_999)])
def test_of_equal_scores_the_first_is_the_best(at: tuple[int, int]) -> None:
    scores = torch.zeros(1, 5_000, device=DEVICE)
    scores[0, list(at)] = 1.0
    _, ids = best_scores(scores, 4)
    # After the two come the first of all others.
    rest = [index for index in range(8) if index not in at]
    assert ids[0].tolist() == [*at, *rest[:2]]
    assert int(scores.argmax()) == at[0]


def test_best_tokens_at_places_are_those_of_the_places() -> None:
    scores = torch.randn(2, 5, 300)
    places = torch.tensor([[0, 3], [4, 1]])
    picked = torch.stack([scores[row, places[row]] for row in range(2)])
    ours, reference = best_tokens(scores, 3, totals=True).at(places), best_tokens(picked, 3, totals=True)
    assert_same(ours, reference)
    assert best_tokens(scores, 0).totals is None
    assert torch.equal(best_tokens(scores, 0).choices, scores.argmax(dim=-1))


def assert_same(ours: BestTokens, reference: BestTokens) -> None:
    assert torch.equal(ours.choices, reference.choices)
    assert torch.equal(ours.ids, reference.ids)
    assert torch.equal(ours.scores, reference.scores)
    assert ours.totals is not None
    assert reference.totals is not None
    assert torch.equal(ours.totals, reference.totals)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize(("rows", "inputs"), [(5, 24), (300, 64), (130, 576)])
@pytest.mark.parametrize("mapped", [False, True])
def test_choices(rows: int, inputs: int, tokens: int, dtype: torch.dtype, mapped: bool) -> None:
    states, head = random(tokens, inputs, dtype=dtype), random(rows, inputs, dtype=dtype)
    norm = Norm(random(inputs, dtype=dtype), 1e-5, scales_wide=True)
    embedding = random(2 * rows, 40, dtype=dtype)
    ids = torch.randperm(2 * rows, device=DEVICE)[:rows] if mapped else None
    padding = torch.where(torch.rand(rows, device=DEVICE) < 0.5, 0.0, -torch.inf) if mapped else None
    if padding is not None:
        padding[0] = 0.0
    chosen = choose(states, norm.weight, 1e-5, head, padding=padding, ids=ids, embedding=embedding, scale=1.5)
    scores = norm(states).float() @ head.float().T
    if padding is not None:
        scores += padding
    best = scores.amax(dim=-1)
    reached = scores.gather(1, chosen.rows[:, None])[:, 0]
    # Other roundings on the way: what is chosen scores as high as the best.
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(reached, best, rtol=tolerance, atol=tolerance)
    check_words(chosen, ids, embedding)


def check_words(chosen: Chosen, ids: Tensor | None, embedding: Tensor) -> None:
    words = chosen.rows if ids is None else ids[chosen.rows]
    assert torch.equal(chosen.words, words)
    assert torch.equal(chosen.embeddings, embedding[words] * 1.5)


def test_the_best_of_very_many_rows_is_found() -> None:
    """Their tiles' bests are more than a program's threads take in one step."""
    rows = 150_000 if ON_GPU else 3_000  # the interpreter takes a millisecond for eight
    head, states = random(rows, 32, dtype=torch.float32), random(1, 32, dtype=torch.float32)
    chosen = choose(states, torch.ones_like(states[0]), 1e-5, head, padding=None, ids=None, embedding=head)
    assert torch.equal(chosen.rows, (states @ head.T).argmax(dim=-1))


def test_of_equal_rows_the_first_is_chosen() -> None:
    head = torch.ones(300, 64, device=DEVICE)
    states = torch.ones(2, 64, device=DEVICE)
    chosen = choose(states, states[0], 1e-5, head, padding=None, ids=None, embedding=head)
    assert chosen.rows.tolist() == [0, 0]


@pytest.mark.parametrize("choice", [None, [2, 0]], ids=str)
@pytest.mark.parametrize("active", [40, None])
def test_chains_are_drafted_as_without_kernels(active: int | None, choice: list[int] | None) -> None:
    """Planted differences would show: the drafts of another drafter are others."""
    target = Target(tiny_model().to(DEVICE), tiny_tokenizer())
    tables, tiny = target.tables, tiny_drafter(target)
    config = tiny.config.model_copy(update={"head_dim": 16})  # the least that kernels take
    ids = None if active is None else torch.randperm(tables.vocab_size, device=DEVICE)[:active]
    rows = tables.head if ids is None else tables.head[ids]
    drafts = []
    for ops, seed in ((TorchOps(), 0), (KernelOps(), 0), (KernelOps(), 1)):
        torch.manual_seed(seed)
        drafter = Drafter(config).to(DEVICE).eval()
        body = DraftBody(drafter, ops, variants=1 if choice is None else 3)
        torch.manual_seed(3)
        for stack in body.stacks.by_parameter.values():
            stack[1:] += 0.1 * random(*stack[1:].shape, dtype=torch.float32)
        body.refresh()
        root = DraftRoot(
            hidden=random(2, 1, tables.hidden_size, dtype=torch.float32),
            starts=torch.tensor([0, 0], device=DEVICE),
            lengths=torch.tensor([5, 5], device=DEVICE),
            drawn=torch.zeros(2, dtype=torch.int64, device=DEVICE),
            longest_context=0,
            choice=None if choice is None else RowChoice(torch.tensor(choice, device=DEVICE)),
        )
        chain = ChainDrafter(body, tables)
        drafts.append(chain.draft(root, 5, HeadView(rows, ids), drafter.new_cache(2, 16)))
    plain, fused, other = drafts
    assert torch.equal(fused.tokens, plain.tokens)
    assert not torch.equal(other.tokens, plain.tokens)


@pytest.mark.parametrize("used", [6, 3])
def test_rows_are_written_as_without_kernels(used: int) -> None:
    """From five rows in use, of tokens 10 to 14, to more or fewer."""
    tables = tiny_target().tables
    plain = HeadRows(tables, 8, padded=True)
    first = np.arange(5)
    plain.write(RowUpdate(first, first + 10, first + 10, np.array([], dtype=np.int64), 5))
    names = ("_rows", "_ids", "_active", "_padding")
    ours = [getattr(plain, name).clone().to(DEVICE) for name in names]
    kept = np.array([1, 5] if used == 6 else [1, 2])
    tokens = np.array([20, 21])
    dropped = np.array([11] if used == 6 else [11, 12, 13, 14])
    update = RowUpdate(kept, tokens, tokens, dropped, used)
    plain.write(update)
    rows, ids, active, padding = ours
    most = 7
    packed = np.full(COUNTS + 4 * most, 99)  # what earlier updates left
    update.pack(packed, most, before=5)
    write_rows(
        tables.head.to(DEVICE),
        torch.from_numpy(packed).to(DEVICE),
        rows=rows,
        ids=ids,
        active=active,
        padding=padding,
    )
    for name, written in zip(names, ours, strict=True):
        assert torch.equal(written.cpu(), getattr(plain, name)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means_advance_as_without_kernels(dtype: torch.dtype) -> None:
    contexts = ContextVectors(4, 300, places=6, decay=0.9, device=torch.device("cpu"))
    contexts.means.normal_()
    ours = contexts.means.clone().to(DEVICE)
    hidden, emitted = random(3, 6, 300, dtype=dtype), torch.tensor([0, 4, 6])
    contexts.advance(hidden.cpu(), emitted)
    keep = 0.9 ** torch.arange(7, device=DEVICE)
    shares = (1 - keep) / torch.arange(7, device=DEVICE).clamp(min=1)
    advance_means(ours, hidden, emitted.to(DEVICE), keep, shares)
    torch.testing.assert_close(ours.cpu(), contexts.means)
