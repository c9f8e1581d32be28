"""Each source proposes what it should, alone and combined; policies are told what they ask for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evospec.config import SourceName, VocabularyConfig
from evospec.engine.request import Request
from evospec.errors import EvoSpecError
from evospec.models.tables import TokenTables
from evospec.vocab.active import ActiveRows
from evospec.vocab.budget import RowBudget
from evospec.vocab.dynamic import DynamicVocabulary
from evospec.vocab.frequency import corpus_ranks
from evospec.vocab.nanospec import NanoSpecVocabulary
from evospec.vocab.policy import build_policy
from evospec.vocab.policy_name import PolicyName
from evospec.vocab.preview import PreviewView
from evospec.vocab.proposals import Origin, Proposals, Ranking
from evospec.vocab.protocol import Ranked, VocabularyPolicy
from evospec.vocab.statistical import StatisticalSource
from evospec.vocab.successors import SuccessorLimits
from tests.tiny import tiny_tokenizer

VOCAB = 400
HEAD = torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(0))
TABLES = TokenTables(HEAD, HEAD)
RANKS = np.arange(VOCAB)[::-1].copy()  # the largest ids are the most frequent
SMALL = {"capacity": 64, "core": 4}


def policy_of(name: str, **settings: float) -> VocabularyPolicy:
    config = VocabularyConfig.model_validate({"policy": name, **SMALL, **settings})
    return build_policy(config, TABLES, RANKS, always=[0], max_batch=1)


def dynamic_of(name: str, **settings: float) -> DynamicVocabulary:
    policy = policy_of(name, **settings)
    assert isinstance(policy, DynamicVocabulary)
    return policy


def origins(policy: VocabularyPolicy) -> dict[int, Origin]:
    return {slot.token_id: slot.origin for slot in policy.slots()}


def tell(policy: VocabularyPolicy) -> None:
    """One event of each kind."""
    policy.admit(Request("r", (10, 11)))
    policy.ranked(Ranked(["r"], [1], np.array([[20, 21]])))
    policy.drafted({"r": np.array([25, 26])})
    policy.emitted({"r": [12]})
    policy.retrieved([30, 31], [2.0, 1.0])
    policy.apply()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("context", {10, 11, 12}),
        ("verification", {20, 21}),
        ("semantic", {30, 31}),
        ("statistical", set[int]()),  # has learned nothing yet
    ],
)
def test_a_source_alone(source: SourceName, expected: set[int]) -> None:
    policy = dynamic_of(f"evospec[{source}]")
    before = origins(policy)
    tell(policy)
    fresh = {token for token, origin in origins(policy).items() if before.get(token) != origin}
    assert fresh == expected
    assert all(origins(policy)[token].name.lower() == source for token in expected)
    assert policy.wishes.retrieval == (source == "semantic")
    assert (policy.wishes.ranked > 0) == (source == "verification")


def test_idle_rows_hold_the_next_most_frequent_tokens() -> None:
    policy = dynamic_of("evospec")
    active = origins(policy)
    assert set(active) == {0, *range(VOCAB - 63, VOCAB)}
    core = {token for token, origin in active.items() if origin is Origin.CORE}
    assert core == {0, *range(VOCAB - 4, VOCAB)}
    tell(policy)
    active = origins(policy)
    assert len(active) == 64
    wanted = {10, 11, 12, 20, 21, 30, 31}
    assert set(active) == {0, *range(VOCAB - 63 + len(wanted), VOCAB), *wanted}


def test_frequent_tokens_come_back_when_nothing_better_was_heard_of() -> None:
    policy = dynamic_of("evospec", half_life=1)
    tell(policy)
    policy.finish("r", learn=True)
    for _ in range(200):
        policy.apply()
    assert set(origins(policy)) == {0, *range(VOCAB - 63, VOCAB)}


def test_what_followed_is_proposed_to_the_same_tenant_only() -> None:
    limits = SuccessorLimits(heads=10, successors=4, window=8, half_life=10)
    source = StatisticalSource(VOCAB, np.arange(4), limits, tenants=2)

    def proposed(request: Request) -> set[int]:
        source.admit(request)
        found = source.propose()
        source.finish(request.id, learn=request.trace)
        source.study()
        return set(found.token_ids.tolist())

    assert proposed(Request("first", (10, 50, 51, 52), tenant="a")) == set()
    assert proposed(Request("private", (11, 60), tenant="a", trace=False)) == set()
    assert proposed(Request("other", (10, 11), tenant="b")) == set()
    assert proposed(Request("second", (10, 11), tenant="a")) == {50, 51, 52}
    assert not len(source.propose())


def test_the_best_score_of_a_token_counts() -> None:
    ranking = Ranking.of(
        {
            Origin.CONTEXT: Proposals.of([5, 6], 1.0),
            Origin.VERIFICATION: Proposals.of([6, 7, 7, 5], np.array([2.0, 0.25, 0.5, 1.0])),
        }
    ).best()
    assert ranking.token_ids.tolist() == [6, 5, 7]
    assert ranking.scores.tolist() == [2.0, 1.0, 0.5]
    assert ranking.origins.tolist() == [Origin.VERIFICATION, Origin.CONTEXT, Origin.VERIFICATION]
    assert len(Ranking.of({Origin.CONTEXT: Proposals.of([], 1.0)}).best()) == 0


def test_nanospec_holds_the_request_and_nothing_else() -> None:
    policy = policy_of("nanospec")
    assert isinstance(policy, NanoSpecVocabulary)
    assert policy.wishes.drafted
    assert policy.wishes.ranked == 3
    assert set(origins(policy)) == {0}
    tell(policy)
    assert set(origins(policy)) == {0, 10, 11, 12, 20, 21, 25, 26}
    policy.admit(Request("s", (11, 40)))
    policy.apply()
    policy.finish("r", learn=True)
    policy.apply()
    assert set(origins(policy)) == {0, 11, 40}
    policy.finish("s", learn=True)
    policy.ranked(Ranked(["s"], [1], np.array([[99]])))  # of a cycle that was under way
    policy.apply()
    assert set(origins(policy)) == {0}
    head = policy.head()
    assert head.count == 1
    assert head.active is not None
    assert head.active.sum() == 1


def test_rows_are_given_up_while_they_save_less_time_than_they_take() -> None:
    budget = RowBudget(least=1000, most=3000, row_seconds=1e-6)
    assert budget.rows == budget.review() == 3000  # nothing was seen yet
    for _ in range(20):
        budget.timed(seconds=1.0, steps=5, requests=2)
        budget.review()
    assert budget.rows == 1000
    # 256 rows at 5 steps take 1.28 ms; a hit in one of two requests saves 110 ms.
    budget.timed(seconds=1.0, steps=5, requests=2)
    budget.count(hits=1, misses=0)
    assert budget.review() == 1000
    budget.count(hits=0, misses=1)
    assert budget.review() == 1256


@pytest.mark.parametrize(("hits", "misses", "rows"), [(90, 0, 1744), (110, 0, 2000), (90, 110, 2256)])
def test_rows_come_and_go_by_what_a_few_more_or_less_would_change(hits: int, misses: int, rows: int) -> None:
    budget = RowBudget(least=1000, most=3000, row_seconds=0.22 / (256 * 5))
    budget.rows = 2000
    for _ in range(100):
        budget.timed(seconds=1.0, steps=5, requests=1)
    budget.count(hits, misses)
    assert budget.review() == rows


def test_rows_that_take_no_time_are_kept() -> None:
    budget = RowBudget(least=1000, most=3000, row_seconds=0.0)
    budget.timed(seconds=1.0, steps=5, requests=1)
    assert budget.review() == 3000


def test_a_limit_takes_out_what_is_wanted_least_and_keeps_what_is_pinned() -> None:
    rows = ActiveRows(TABLES, 8, half_life=4)
    rows.activate(np.arange(8), np.arange(8.0))
    rows.pin(np.array([0]))
    rows.limit(4)
    rows.write()
    ids = rows.view().ids
    assert ids is not None
    assert set(ids.tolist()) == {0, 5, 6, 7}
    assert rows.activate(np.array([20, 21]), 6.5) == 2
    assert rows.count == 4
    rows.limit(8)
    assert rows.activate(np.arange(30, 40), 0.1) == 4


def test_a_vocabulary_gives_up_rows_until_it_misses_them() -> None:
    tables = TokenTables(torch.randn(2000, 4), torch.randn(2000, 4))
    settings = VocabularyConfig(capacity=1024, core=4, half_life=10**6)
    policy = build_policy(settings, tables, np.arange(2000), [0], 1, row_seconds=1e-6)
    policy.admit(Request("r", (10,)))

    def cycles(count: int, tokens: list[int]) -> None:
        for _ in range(count):
            policy.emitted({"r": tokens})
            policy.timed(seconds=1.0, steps=5, requests=1)
            policy.apply()

    cycles(64 * 6, [10])
    assert policy.head().count == 8  # twice the core
    cycles(1, list(range(200, 204)))  # of those that left
    cycles(64, [10])
    assert policy.head().count == 8 + 256


def test_padding_covers_rows_that_left() -> None:
    rows = ActiveRows(TABLES, 8, half_life=4, padded=True)
    rows.activate(np.arange(20, 26), 1.0)
    rows.write()
    rows.deactivate(np.array([21, 25, 399]))
    rows.write()
    view = rows.view()
    assert view.count == 4
    assert view.ids is not None
    assert set(view.ids[:4].tolist()) == {20, 22, 23, 24}
    assert torch.equal(view.rows[:4], TABLES.head[view.ids[:4]])
    scores = view.score(torch.ones(1, 8))
    assert torch.isfinite(scores[0, :4]).all()
    assert torch.isneginf(scores[0, 4:]).all()


def test_static_lists_differ_in_their_frequencies(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("aaaa bb", encoding="utf-8")
    tokenizer = tiny_tokenizer()
    config = VocabularyConfig(policy=f"fr-spec:2:{corpus}")
    counted = build_policy(config, TABLES, RANKS, [0], 1, lambda file: corpus_ranks(file, tokenizer, VOCAB))
    ids = counted.head().ids
    assert ids is not None
    assert set(ids.tolist()) == {0, *tokenizer.encode("a"), *tokenizer.encode("b")}
    for name in ("vocabtrim:3", "fr-spec:3"):
        ids = policy_of(name).head().ids
        assert ids is not None
        assert set(ids.tolist()) == {0, VOCAB - 1, VOCAB - 2, VOCAB - 3}
        assert policy_of(name).slots() == []
        assert policy_of(name).epoch == 0


def test_a_corpus_file_is_text_json_lines_or_a_list(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    lines = tmp_path / "corpus.jsonl"
    lines.write_text('{"text": "aab"}\n\n{"prompt": "a"}\n', encoding="utf-8")
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assert corpus_ranks(lines, tokenizer, VOCAB).tolist() == [a, b]
    listed = tmp_path / "ranks.json"
    listed.write_text(json.dumps([7, 3]), encoding="utf-8")
    assert corpus_ranks(listed, tokenizer, VOCAB).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot read"),
        ("ranks.json", "[1, 400]", "below 400"),
        ("ranks.json", "[1, true]", "below 400"),
        ("ranks.json", "[1, 1]", "twice"),
        ("ranks.json", "[1,", "cannot read"),
        ("corpus.jsonl", '{"text": "a"}\n{"text": 3}', "line 2"),
        ("corpus.jsonl", '["text"]', "line 1"),
    ],
)
def test_an_unusable_corpus_file_is_named(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(EvoSpecError, match=message) as raised:
        corpus_ranks(file, tiny_tokenizer(), VOCAB)
    assert name in str(raised.value)


def test_a_preview_scores_its_choice_exactly() -> None:
    states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    exact = states @ TABLES.head.T
    full_rank = PreviewView.of(TABLES, rank=8, exact=5)
    scores = full_rank.score(states)
    chosen = torch.isfinite(scores)
    assert chosen.sum(dim=-1).eq(5).all()
    torch.testing.assert_close(scores[chosen], exact[chosen])
    assert torch.equal(scores.argmax(dim=-1), exact.argmax(dim=-1))
    assert full_rank.count == 5
    low_rank = PreviewView.of(TABLES, rank=3, exact=VOCAB)
    torch.testing.assert_close(low_rank.score(states), exact)


def test_the_preview_is_the_best_of_its_rank() -> None:
    preview = PreviewView.of(TABLES, rank=3, exact=5)
    assert preview.up is not None
    assert preview.down is not None
    error = torch.linalg.norm(TABLES.head - preview.up @ preview.down.T)
    tail = torch.linalg.svdvals(TABLES.head)[3:]
    torch.testing.assert_close(error, tail.square().sum().sqrt())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("evospec[semantic+context]", PolicyName("evospec", sources=("context", "semantic"))),
        ("evospec[]", PolicyName("evospec", sources=())),
        ("vocabtrim:8", PolicyName("vocabtrim", rows=8)),
        ("fr-spec:8:a:b.txt", PolicyName("fr-spec", rows=8, corpus=Path("a:b.txt"))),
        ("specvocab:64:2048", PolicyName("specvocab", rank=64, rows=2048)),
        ("nanospec", PolicyName("nanospec")),
    ],
)
def test_names_are_read(text: str, name: PolicyName) -> None:
    assert PolicyName.parse(text) == name


@pytest.mark.parametrize(
    "text", ["vocabtrim", "nanospec:3", "specvocab:8", "fr-spec:3:", "evospec[", "full[]"]
)
def test_an_unknown_name_is_told(text: str) -> None:
    with pytest.raises(EvoSpecError, match="unknown vocabulary policy"):
        PolicyName.parse(text)


def test_an_unknown_source_is_told() -> None:
    with pytest.raises(EvoSpecError, match="unknown source 'magic'"):
        PolicyName.parse("evospec[context+magic]")
