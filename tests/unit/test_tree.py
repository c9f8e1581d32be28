"""Draft trees: what is kept, how it hangs together, and what the target takes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.decoding.draft import Draft, DraftTree
from evospec.decoding.sampling import SamplingBatch, SamplingParams
from evospec.decoding.tree import TreeDrafter, TreeShape
from evospec.decoding.verify import Verdict, verify
from evospec.models.draft_body import DraftBody
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import KVCache, Window
from evospec.models.target import Target
from evospec.vocab.head_rows import HeadView
from tests.tiny import tiny_drafter, tiny_target

CPU = torch.device("cpu")
GREEDY = SamplingBatch.of([SamplingParams()], CPU)
CONTEXT = 6


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return tiny_drafter(target)


@pytest.fixture(scope="module")
def head(target: Target) -> HeadView:
    return HeadView(target.tables.head, None)


def absorbed(drafter: Drafter, target: Target, tokens: Tensor, seed: int = 0) -> tuple[KVCache, Tensor]:
    """A drafter's cache after a context of random features, and its last output [1, 1, hidden]."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, len(tokens), drafter.config.feature_size, generator=generator)
    cache = drafter.new_cache(1, 64)
    hidden = ChainDrafter(DraftBody(drafter), target.tables).absorb(
        features, tokens[None], Window.of([0], len(tokens), CPU), cache
    )
    return cache, hidden[:, -1:]


def tree_of(drafter: Drafter, target: Target, head: HeadView, shape: TreeShape, seed: int = 0) -> Draft:
    cache, hidden = absorbed(drafter, target, torch.arange(20, 20 + CONTEXT), seed)
    root = DraftRoot(hidden, torch.tensor([CONTEXT]), torch.tensor([shape.depth]), torch.tensor([0]), CONTEXT)
    return TreeDrafter(DraftBody(drafter), target.tables).draft(root, shape, head, cache)


def paths_of(draft: Draft) -> dict[tuple[int, ...], int]:
    """Token path of each node, to its place."""
    tree = draft.tree
    assert tree is not None
    tokens, parents = draft.tokens[0].tolist(), tree.parents[0].tolist()
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*paths[parent], token))
    return {path: place for place, path in enumerate(paths)}


@torch.inference_mode()
def logprobs_after(drafter: Drafter, target: Target, path: tuple[int, ...], seed: int) -> Tensor:
    """The drafter's log-probabilities after a path, run as a chain of its own [vocab]."""
    cache, hidden = absorbed(drafter, target, torch.arange(20, 20 + CONTEXT), seed)
    for step, token in enumerate(path):
        embedding = target.tables.embed(torch.tensor([[token]]))
        hidden = DraftBody(drafter)(hidden, embedding, Window.of([CONTEXT + step], 1, CPU), cache)
    return torch.log_softmax((drafter.norm(hidden[0, 0]) @ target.tables.head.T).float(), dim=-1)


@pytest.mark.parametrize("shape", [TreeShape(1, 4, 3), TreeShape(3, 2, 8), TreeShape(4, 3, 12)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tree_is_the_best_of_a_beam_search(
    drafter: Drafter, target: Target, head: HeadView, shape: TreeShape, seed: int
) -> None:
    """Against a beam search that runs every path from the context again."""
    scores: dict[tuple[int, ...], float] = {}
    beam: list[tuple[int, ...]] = [()]
    for _ in range(shape.depth):
        grown: dict[tuple[int, ...], float] = {}
        for path in beam:
            values, tokens = logprobs_after(drafter, target, path, seed).topk(shape.beam)
            for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                grown[(*path, token)] = scores.get(path, 0.0) + value
        scores |= grown
        beam = sorted(grown, key=grown.__getitem__, reverse=True)[: shape.beam]
    best = sorted(scores, key=scores.__getitem__, reverse=True)[: shape.nodes]
    assert set(paths_of(tree_of(drafter, target, head, shape, seed))) == {(), *best}


def test_depths_and_ancestors_follow_from_parents(drafter: Drafter, target: Target, head: HeadView) -> None:
    draft = tree_of(drafter, target, head, TreeShape(4, 3, 12))
    tree = draft.tree
    assert tree is not None
    parents, lineage = [0, *tree.parents[0].tolist()], [{0}]
    for place in range(1, len(parents)):
        assert parents[place] < place
        lineage.append(lineage[parents[place]] | {place})
    for place, ancestors in enumerate(lineage):
        assert int(tree.depths[0, place]) == len(ancestors) - 1
        assert {bit for bit in range(13) if int(tree.ancestors[0, place]) >> bit & 1} == ancestors


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="more nodes than there are candidates"):
        TreeShape(2, 2, 7)
    with pytest.raises(ValueError, match="bits"):
        TreeShape(8, 8, 20)


def made_tree(parents: list[int], tokens: list[int], length: int) -> Draft:
    depths, ancestors = [0], [1]
    for place, parent in enumerate(parents, start=1):
        depths.append(depths[parent] + 1)
        ancestors.append(ancestors[parent] | 1 << place)
    tree = DraftTree(
        torch.tensor([parents]), torch.tensor([depths]), torch.tensor([ancestors]), deepest=max(depths)
    )
    chosen = torch.tensor([tokens])
    return Draft(chosen, torch.tensor([length]), tree=tree)


def walk(
    parents: list[int], tokens: list[int], choices: list[int], length: int
) -> tuple[list[int], list[int]]:
    """Tokens emitted and the places that decided them, step by step."""
    place, emitted, places = 0, [choices[0]], [0]
    while len(places) <= length:
        children = [
            child
            for child, parent in enumerate(parents, start=1)
            if parent == place and tokens[child - 1] == choices[place]
        ]
        if not children:
            break
        (place,) = children
        emitted.append(choices[place])
        places.append(place)
    return emitted, places


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int]:
    """Parents, tokens (siblings differ), the target's choice at each place, and the row's limit."""
    nodes = draw(st.integers(1, 12))
    parents = [draw(st.integers(0, node)) for node in range(nodes)]
    tokens: list[int] = []
    for node, parent in enumerate(parents):
        taken = {tokens[other] for other in range(node) if parents[other] == parent}
        free = [token for token in range(13) if token not in taken]
        tokens.append(draw(st.sampled_from(free[:3])))
    choices = [draw(st.integers(0, 3)) for _ in range(nodes + 1)]
    return parents, tokens, choices, draw(st.integers(0, 6))


@settings(max_examples=200, deadline=None)
@given(trees())
def test_verification_walks_down_the_targets_choices(
    case: tuple[list[int], list[int], list[int], int],
) -> None:
    parents, tokens, choices, length = case
    logits = torch.nn.functional.one_hot(torch.tensor([choices]), 14).float()
    verdict = verify(made_tree(parents, tokens, length), logits, GREEDY, torch.tensor([1]))
    emitted, places = walk(parents, tokens, choices, length)
    count = int(verdict.accepted) + 1
    assert verdict.tokens[0, :count].tolist() == emitted
    assert verdict.places is not None
    assert verdict.places[0, :count].tolist() == places


def test_kept_paths_become_contiguous() -> None:
    cache = KVCache(layers=2, kv_heads=1, head_dim=2, slots=3, positions=12, dtype=torch.float32, device=CPU)
    for buffer in (*cache.keys, *cache.values):
        buffer.normal_()
    before = [buffer.clone() for buffer in (*cache.keys, *cache.values)]
    starts, places = torch.tensor([2, 5]), torch.tensor([[0, 2, 3], [0, 1, 4]])
    cache.keep_path(starts, places)
    for buffer, old in zip((*cache.keys, *cache.values), before, strict=True):
        for row in range(2):
            start, source = int(starts[row]), [int(starts[row] + place) for place in places[row]]
            assert torch.equal(buffer[row, :, start : start + 3], old[row, :, source])
            assert torch.equal(buffer[row, :, :start], old[row, :, :start])
        assert torch.equal(buffer[2], old[2])


def test_equal_seeds_draw_equal_tokens_whatever_was_drafted() -> None:
    """A tree, a chain and no draft at all: the target's own draws decide."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 8, generator=generator)  # logits after each token
    params = SamplingBatch.of([SamplingParams(temperature=0.9, seed=5)], CPU)

    def emitted(draft: Draft, context: list[int]) -> Verdict:
        return verify(draft, table[torch.tensor([context])], params, torch.tensor([1]))

    plain: list[int] = []
    last = 3
    for position in range(3):
        logits = table[torch.tensor([[last]])]
        verdict = verify(Draft.empty(1, CPU), logits, params, torch.tensor([1 + position]))
        last = int(verdict.tokens[0, 0])
        plain.append(last)
    chain = torch.tensor([[plain[0], plain[1]]])
    of_chain = emitted(Draft(chain, torch.tensor([2])), [3, plain[0], plain[1]])
    assert of_chain.tokens[0].tolist() == plain
    other = (plain[0] + 1) % 8
    tree = made_tree([0, 0, 2], [other, plain[0], plain[1]], 3)
    of_tree = emitted(tree, [3, other, plain[0], plain[1]])
    assert of_tree.tokens[0, :3].tolist() == plain
    assert int(of_tree.accepted) == 2
