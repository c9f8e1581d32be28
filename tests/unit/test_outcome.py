"""What a cycle reports: above all, that the first guess means the same for chains and for trees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evospec.decoding.best import best_tokens
from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.decoding.draft import Draft
from evospec.decoding.sampling import SamplingBatch, SamplingParams
from evospec.decoding.tree import TreeDrafter, TreeShape
from evospec.decoding.verify import verify
from evospec.engine.report import NOTHING, Report, ReportLayout
from evospec.models.draft_body import DraftBody
from evospec.models.kv_cache import KVCache, Window
from evospec.vocab.head_rows import HeadView
from tests.tiny import tiny_drafter, tiny_target

CPU = torch.device("cpu")
GREEDY = SamplingBatch.of([SamplingParams()], CPU)
CONTEXT = 6
DEPTH = 3


def drafts(seed: int) -> list[Draft]:
    """Chains of three lengths and trees of two shapes, from the same context."""
    target = tiny_target()
    drafter = tiny_drafter(target)
    body, tables, head = DraftBody(drafter), target.tables, HeadView(target.tables.head, None)
    features = torch.randn(
        1, CONTEXT, drafter.config.feature_size, generator=torch.Generator().manual_seed(seed)
    )

    def begun(depth: int) -> tuple[DraftRoot, KVCache]:
        cache = drafter.new_cache(1, 64)
        tokens = torch.arange(20, 20 + CONTEXT)[None]
        hidden = ChainDrafter(body, tables).absorb(features, tokens, Window.of([0], CONTEXT, CPU), cache)
        lengths, starts = torch.tensor([depth]), torch.tensor([0])
        return DraftRoot(hidden[:, -1:], torch.tensor([CONTEXT]), lengths, starts, CONTEXT), cache

    made = []
    for length in (1, 2, DEPTH):
        root, cache = begun(length)
        made.append(ChainDrafter(body, tables).draft(root, length, head, cache))
    for shape in (TreeShape(DEPTH, 4, 9), TreeShape(2, 3, 5)):
        root, cache = begun(shape.depth)
        made.append(TreeDrafter(body, tables).draft(root, shape, head, cache))
    return made


def outcome(draft: Draft, first_choice: int, vocab: int) -> Report:
    """Of a target that decides `first_choice`, and then always the next token id."""
    nodes = draft.tokens.shape[1]
    choices = torch.tensor([[first_choice, *((draft.tokens[0] + 1) % vocab).tolist()]])
    logits: Tensor = torch.nn.functional.one_hot(choices, vocab).float()
    assert logits.shape == (1, nodes + 1, vocab)
    return read(draft, logits)


def read(draft: Draft, logits: Tensor) -> Report:
    nodes = draft.tokens.shape[1]
    layout = ReportLayout(
        draft.depth + 1, nodes=nodes, tree=draft.tree is not None, covered=False, wanted=NOTHING
    )
    verdict = verify(draft, logits, GREEDY, torch.tensor([1]))
    return layout.read(layout.pack(verdict, best_tokens(logits, 0), None, draft.tokens).numpy())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_guess_is_the_same_for_chains_and_trees(seed: int) -> None:
    vocab = tiny_target().vocab_size
    made = drafts(seed)
    best = int(made[0].tokens[0, 0])
    second = int(made[-1].tokens[0, 1])  # of a tree's first level
    for draft in made:
        assert outcome(draft, best, vocab).first == [True]
        assert outcome(draft, second, vocab).first == [False]
        assert outcome(draft, (best + second + 1) % vocab, vocab).first == [False]
    assert outcome(made[-1], second, vocab).accepted[0] >= 1  # accepted, but not as the first guess


def test_without_a_draft_there_is_no_guess() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[3]]), 8).float()
    found = read(Draft.empty(1, CPU), logits)
    assert (found.accepted, found.tokens, found.first) == ([0], [[3]], [False])
