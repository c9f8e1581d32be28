"""Which documents stay: duplicates by hash, near-duplicates by MinHash, and shares by weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from evospec.align.degenerate import LARGEST_LOOP_SHARE, loop_share, may_loop
from evospec.training.corpus import Document
from evospec.training.dedupe import (
    HASHES,
    SHINGLE,
    Sketcher,
    Sketches,
    find_duplicates,
    find_near_duplicates,
    normal_ids,
)
from evospec.training.mixing import choose_documents, weighted_amounts
from tests.tiny import tiny_tokenizer

VOCAB = 260


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def sketcher(tokenizer) -> Sketcher:
    return Sketcher(tokenizer, VOCAB)


def letters(count: int, seed: int) -> np.ndarray:
    """Ids of random lower-case letters in the tiny tokenizer."""
    ids = tiny_tokenizer().encode("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)
    return np.array(ids)[np.random.default_rng(seed).integers(26, size=count)]


def sketched(sketcher: Sketcher, *documents: Document) -> Sketches:
    sketches = Sketches()
    for document in documents:
        sketcher.add(document, sketches)
    return sketches


def near(sketcher: Sketcher, *documents: Document) -> list[bool]:
    sketches = sketched(sketcher, *documents)
    return find_near_duplicates(sketches, without=find_duplicates(sketches)).tolist()


def text(tokenizer: PreTrainedTokenizerFast, content: str) -> Document:
    return Document(np.array(tokenizer.encode(content, add_special_tokens=False)), 1)


def test_exact_duplicates_differ_in_case_space_and_special_tokens_only(tokenizer, sketcher) -> None:
    contents = [
        "The cat sat.",
        "the  CAT\n\tsat.",
        "<|user|>The cat sat.<|end|>",
        "The cat sat!",
        "Thecat sat.",
    ]
    sketches = sketched(sketcher, *(text(tokenizer, content) for content in contents))
    assert find_duplicates(sketches).tolist() == [False, True, True, False, True]


def test_bytes_of_other_scripts_are_not_folded(tokenizer, sketcher) -> None:
    """Byte-level tokens look like letters (0xC3 is Ã, 0xE3 is ã) without being those letters."""
    contents = ["é", "É", "ã", "漢字", "字漢"]
    sketches = sketched(sketcher, *(text(tokenizer, content) for content in contents))
    assert not find_duplicates(sketches).any()


def test_ids_beyond_the_tokenizer_stand_for_themselves(tokenizer) -> None:
    normal = normal_ids(tokenizer, 300)
    assert normal[260:].tolist() == list(range(260, 300))
    assert normal[tokenizer.encode("A")[0]] == normal[tokenizer.encode("a")[0]]
    assert normal[tokenizer.encode(" ")[0]] == normal[tokenizer.eos_token_id] == -1


def test_near_duplicates_are_found_and_the_first_stays(sketcher) -> None:
    base = letters(400, seed=0)
    edited = base.copy()
    edited[200:204] = letters(4, seed=9)
    other = letters(400, seed=1)
    documents = [Document(ids, 0) for ids in (base, other, edited, base[:390], base[:100])]
    assert near(sketcher, *documents) == [False, False, True, True, False]


def test_answers_are_compared_not_prompts(sketcher) -> None:
    prompt, first, second = letters(300, 0), letters(60, 1), letters(60, 2)
    same_prompt = [Document(np.concatenate((prompt, answer)), 300) for answer in (first, second)]
    same_answer = [Document(np.concatenate((letters(50, seed), first)), 50) for seed in (3, 4)]
    assert near(sketcher, *same_prompt) == [False, False]
    assert near(sketcher, *same_answer) == [False, True]


def test_short_answers_are_only_compared_exactly(sketcher) -> None:
    answer = letters(31, 1)
    documents = [Document(np.concatenate((letters(50, seed), answer)), 50) for seed in (3, 4)]
    assert near(sketcher, *documents) == [False, False]


def test_a_chain_of_near_duplicates_keeps_its_first(sketcher) -> None:
    chain = [letters(400, seed=0)]
    for step in range(6):
        edited = chain[-1].copy()
        edited[40 * step : 40 * step + 10] = letters(10, seed=step + 20)
        chain.append(edited)
    assert near(sketcher, *(Document(ids, 0) for ids in chain)) == [False] + [True] * 6


def test_exact_duplicates_are_not_counted_twice(sketcher) -> None:
    document = Document(letters(200, seed=0), 0)
    sketches = sketched(sketcher, document, document)
    duplicate = find_duplicates(sketches)
    assert duplicate.tolist() == [False, True]
    assert not find_near_duplicates(sketches, without=duplicate).any()
    assert find_near_duplicates(sketches, without=np.zeros(2, dtype=bool)).tolist() == [False, True]


@pytest.mark.parametrize("shared", [0, 100, 200, 300, 380])
def test_signatures_estimate_jaccard_similarity(shared) -> None:
    rng = np.random.default_rng(shared)
    sketcher = Sketcher(tiny_tokenizer(), VOCAB, seed=1)
    estimates, truths = [], []
    for _ in range(40):
        left = rng.integers(10_000, size=400)
        right = np.concatenate((left[:shared], rng.integers(10_000, size=400 - shared)))
        sets = [
            {tuple(ids[index : index + SHINGLE]) for index in range(400 - SHINGLE + 1)}
            for ids in (left.tolist(), right.tolist())
        ]
        truths.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
        estimates.append(float((sketcher.signature(left) == sketcher.signature(right)).mean()))
    # The mean of 40 estimates of 64 hashes has a standard deviation of at most 0.01.
    assert np.mean(estimates) == pytest.approx(np.mean(truths), abs=0.04)
    assert np.std(estimates) <= 1.5 * np.sqrt(0.25 / HASHES)


def test_random_documents_are_rarely_taken_for_near_duplicates(sketcher) -> None:
    documents = [Document(letters(100, seed), 0) for seed in range(500)]
    assert sum(near(sketcher, *documents)) == 0


def test_nothing_has_no_duplicates() -> None:
    sketches = Sketches()
    assert find_duplicates(sketches).tolist() == []
    assert find_near_duplicates(sketches, without=np.zeros(0, dtype=bool)).tolist() == []


@pytest.mark.parametrize(
    ("amounts", "weights", "expected"),
    [
        ([100, 300, 50], [None, None, None], [100, 300, 50]),
        ([100, 300, 50], [1.0, 1.0, None], [50, 50, 50]),
        ([100, 300], [1.0, 3.0], [100, 300]),
        ([100, 300], [3.0, 1.0], [100, 33]),
        ([100, 0, 300], [1.0, 5.0, None], [100, 0, 100]),
        ([0, 0], [1.0, 1.0], [0, 0]),
        ([], [], []),
    ],
)
def test_the_scarcest_source_for_its_weight_stays_whole(amounts, weights, expected) -> None:
    assert weighted_amounts(amounts, weights) == expected


@given(
    parts=st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-3, 1e3)), min_size=1, max_size=8),
)
def test_shares_are_those_of_the_weights(parts) -> None:
    amounts, weights = [part[0] for part in parts], [part[1] for part in parts]
    kept = weighted_amounts(amounts, weights)
    assert all(0 <= part <= amount for part, amount in zip(kept, amounts, strict=True))
    assert any(part == amount for part, amount in zip(kept, amounts, strict=True))
    for part, weight in zip(kept, weights, strict=True):
        assert part * sum(weights) == pytest.approx(sum(kept) * weight, abs=(len(kept) + 1) * sum(weights))


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=60).map(np.array),
    amount=st.integers(0, 30_000),
    seed=st.integers(0, 50),
)
def test_documents_are_chosen_up_to_the_amount(lengths, amount, seed) -> None:
    chosen = choose_documents(lengths, amount, np.random.default_rng(seed))
    kept = int(lengths[chosen].sum())
    assert chosen.any()
    assert kept <= amount or chosen.sum() == 1
    assert chosen.all() or kept > amount - lengths.max()


def test_the_choice_is_random_but_repeatable() -> None:
    lengths = np.full(1_000, 10)
    first, again, other = (
        choose_documents(lengths, 5_000, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 200 < first[:500].sum() < 300


@settings(max_examples=300, deadline=None)
@given(
    head=st.lists(st.integers(0, 50), max_size=60),
    unit=st.lists(st.integers(0, 50), min_size=1, max_size=32),
    repeats=st.integers(1, 12),
    tail=st.lists(st.integers(0, 50), max_size=60),
)
def test_the_quick_test_for_loops_misses_none(head, unit, repeats, tail) -> None:
    ids = np.array(head + unit * repeats + tail)
    assert may_loop(ids) or loop_share(ids) <= LARGEST_LOOP_SHARE


def test_the_quick_test_passes_ordinary_text(tokenizer) -> None:
    assert not may_loop(np.random.default_rng(0).integers(5_000, size=600))
