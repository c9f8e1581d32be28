"""Greedy decoding emits the target's own tokens, whatever drafts, changes or crowds in."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import evospec.engine.settling as settling_module
from evospec.config import EngineConfig, SemanticConfig, VocabularyConfig
from evospec.decoding.draft import Draft
from evospec.decoding.verify import Verdict, verify
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot
from evospec.models.deltas import adapted_linears
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import KVCache, Window
from evospec.models.target import Target
from evospec.vocab.policy import build_policy
from evospec.vocab.semantic import SemanticSource
from evospec.wire import Fingerprints, TokenHits
from tests.tiny import tiny_drafter, tiny_model, tiny_target, tiny_tokenizer

EOS = 256
NEW_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Case:
    prompt: tuple[int, ...]
    reference: tuple[int, ...]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Ragged prompts with what transformers' own generate answers."""
    rng = random.Random(0)
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    made = []
    for _ in range(16):
        prompt = tuple(rng.randrange(256) for _ in range(rng.randrange(1, 60)))
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
        made.append(Case(prompt, tuple(output[0, len(prompt) :].tolist())))
    return made


def with_own_tables(target: Target) -> Drafter:
    """A drafter with random embeddings, and a head of every third token, of its own."""
    config = tiny_drafter(target).config.model_copy(update={"draft_vocab_size": 87, "own_embedding": True})
    torch.manual_seed(2)
    drafter = Drafter(config).requires_grad_(False).eval()
    assert drafter.embed_tokens is not None
    assert drafter.lm_head is not None
    drafter.embed_tokens.weight.normal_()
    drafter.lm_head.weight.normal_()
    drafter.head_ids.copy_(torch.arange(0, 260, 3))
    return drafter


def build(
    target: Target,
    policy: str | None,
    draft_length: int,
    max_batch: int = 4,
    capacity: int = 100,
    make_drafter: Callable[[Target], Drafter] = tiny_drafter,
    **engine: Any,
) -> Engine:
    drafter = make_drafter(target) if policy is not None else None
    if drafter is not None:
        target.tap(drafter.config.tap_layers)
    vocabulary = None
    if policy is not None and drafter is not None:
        settings = VocabularyConfig(policy=policy, capacity=capacity, core=32, half_life=4)
        tables = drafter.tables(target.tables)
        vocabulary = build_policy(settings, tables, np.arange(260), [EOS], max_batch)
    return Engine(
        target,
        drafter,
        EngineConfig(
            max_batch=max_batch, max_length=128, draft_length=draft_length, prefill_chunk=16, **engine
        ),
        Fingerprints(target="t", drafter="d", tokenizer="k"),
        learners=Learners(
            vocabulary=vocabulary,
            ranked_k=4,
            prompt_ranked=8,
            drafted=policy == "nanospec",
            semantic=SemanticSource(SemanticConfig(), range(32), "t"),
        ),
    )


def decode(
    engine: Engine, cases: list[Case], between: Callable[[int], None] = lambda step: None
) -> dict[int, tuple[int, ...]]:
    """All cases at once; `between` is called between steps."""
    for index, case in enumerate(cases):
        engine.admit(Request(str(index), case.prompt, SamplingParams(max_tokens=NEW_TOKENS)))
    written: dict[int, tuple[int, ...]] = {}
    step = 0
    while engine.has_work:
        for output in engine.step():
            index = int(output.request_id)
            written[index] = written.get(index, ()) + output.tokens
        between(step)
        step += 1
    return written


def wrong(written: dict[int, tuple[int, ...]], cases: list[Case]) -> list[int]:
    return [index for index, case in enumerate(cases) if written.get(index) != case.reference]


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("draft_length", [0, 1, 5])
@pytest.mark.parametrize(
    "policy", ["full", "evospec", "fr-spec:64", "vocabtrim:64", "nanospec", "specvocab:8:40", None]
)
def test_output_equals_generate(
    target: Target, cases: list[Case], policy: str | None, draft_length: int, overlap: str
) -> None:
    engine = build(target, policy, draft_length, overlap=overlap)
    assert wrong(decode(engine, cases), cases) == []
    assert engine.stats.requests_finished == len(cases)


@pytest.mark.parametrize("policy", ["full", "evospec", "fr-spec:64"])
def test_a_drafter_with_tables_of_its_own_changes_nothing(
    target: Target, cases: list[Case], policy: str
) -> None:
    engine = build(target, policy, 5, capacity=64, make_drafter=with_own_tables)
    assert wrong(decode(engine, cases), cases) == []
    assert engine.stats.active_rows == {"full": 87, "evospec": 64, "fr-spec:64": 64}[policy]
    assert 0 < engine.stats.covered_tokens < engine.stats.coverable_tokens


@pytest.mark.parametrize("drafting", ["chain", "tree"])
@pytest.mark.parametrize("policy", ["full", "evospec"])
def test_chains_and_trees_change_nothing(
    target: Target, cases: list[Case], policy: str, drafting: str
) -> None:
    engine = build(target, policy, 4, drafting=drafting, tree_depth=3, tree_beam=4, tree_nodes=11)
    assert wrong(decode(engine, cases), cases) == []
    assert engine.stats.accepted_tokens > 0
    assert engine.stats.draft_plan == ("chain-4" if drafting == "chain" else "tree-3x4-11")


def test_output_equals_generate_alone(target: Target, cases: list[Case]) -> None:
    for case in cases[:6]:
        assert decode(build(target, "evospec", 5, max_batch=1), [case]) == {0: case.reference}


def sampled(engine: Engine, cases: list[Case]) -> dict[int, tuple[int, ...]]:
    """All cases at once with temperatures, top-k, top-p and seeds of their own, some greedy."""
    for index, case in enumerate(cases):
        params = SamplingParams(
            temperature=0.3 * (index % 4),
            top_k=7 if index % 3 == 1 else 0,
            top_p=0.8 if index % 3 == 2 else 1.0,
            seed=index,
            max_tokens=NEW_TOKENS,
        )
        engine.admit(Request(str(index), case.prompt, params))
    written: dict[int, tuple[int, ...]] = {}
    while engine.has_work:
        for output in engine.step():
            index = int(output.request_id)
            written[index] = written.get(index, ()) + output.tokens
    return written


def test_a_seed_gives_its_text_whatever_drafts_and_whoever_else_runs(
    target: Target, cases: list[Case]
) -> None:
    plain = sampled(build(target, None, 0, max_batch=1), cases)
    assert len(set(plain.values())) == len(cases)
    for policy, batch, drafting in (
        ("full", 4, "chain"),
        ("evospec", 1, "tree"),
        ("evospec", 6, "tree"),
        ("fr-spec:64", 3, "auto"),
    ):
        engine = build(target, policy, 3, max_batch=batch, drafting=drafting)
        assert sampled(engine, cases) == plain


def test_drawn_drafts_leave_greedy_requests_alone(target: Target, cases: list[Case]) -> None:
    engine = build(target, "evospec", 3, drafting="chain", sampled_drafts="drawn")
    written = sampled(engine, cases)
    greedy = [index for index in range(len(cases)) if index % 4 == 0]
    assert [written[index] for index in greedy] == [cases[index].reference for index in greedy]


def test_adapter_swaps_and_vocabulary_changes_never_show(target: Target, cases: list[Case]) -> None:
    engine = build(target, "evospec", 5)
    assert engine.drafter is not None
    shapes = {name: linear.weight.shape for name, linear in adapted_linears(engine.drafter).items()}
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)

    def disturb(step: int) -> None:
        tensors = {}
        for name, (out_size, in_size) in shapes.items():
            tensors[f"{name}.lora_a"] = torch.randn(2, in_size, generator=generator)
            tensors[f"{name}.lora_b"] = torch.randn(out_size, 2, generator=generator)
        engine.swap_adapter(AdapterWeights(step + 1, tensors) if step % 3 else None)
        hits = TokenHits(tuple(rng.integers(0, 260, 20).tolist()), (1.0,) * 20)
        for index in range(len(cases)):
            engine.offer_hits(str(index), hits)

    assert wrong(decode(engine, cases, disturb), cases) == []
    assert engine.stats.adapter_swaps > 10
    assert engine.stats.vocabulary_epoch > 20


def test_ties_break_alike_in_plain_and_speculative_decoding() -> None:
    """Two tokens with the same head row always tie; the lower id must win on every path."""
    target = tiny_target()
    with torch.no_grad():
        head = target.model.get_output_embeddings().weight
        head[130:256] = head[4:130]
    case = Case(tuple(range(5, 25)), ())
    plain = decode(build(target, None, 0), [case])
    assert decode(build(target, "evospec", 5), [case]) == plain
    assert decode(build(target, "full", 3), [case]) == plain


def forgets_one_key(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: the cache is rolled back one position too far."""
    original = KVCache.bind

    def bind(self: KVCache, window: Window) -> None:
        original(self, window)
        start = int(window.starts.min())
        if window.width > 1 and start > 30:
            for key in self.keys:
                key[:, :, start - 1] = 0.0

    monkeypatch.setattr(KVCache, "bind", bind)


def accepts_one_too_many(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: a draft token is taken without looking."""

    def careless(draft: Draft, *target_side: Any) -> Verdict:
        verdict = verify(draft, *target_side)
        if draft.tokens.shape[1]:
            verdict.tokens[:, 0] = draft.tokens[:, 0]
        return verdict

    monkeypatch.setattr(settling_module, "verify", careless)


@pytest.mark.parametrize("bug", [forgets_one_key, accepts_one_too_many], ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_caught(
    bug: Callable[[Target, pytest.MonkeyPatch], None],
    target: Target,
    cases: list[Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(target, monkeypatch)
    assert wrong(decode(build(target, "evospec", 5), cases), cases) != []


def test_a_swapped_adapter_drafts_as_a_drafter_that_has_it_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where processors keep a copy of the weights in a layout of their own."""
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    drafts: list[list[int]] = []

    def watch(draft: Draft, *target_side: Any) -> Verdict:
        drafts.append(draft.tokens.flatten().tolist())
        return verify(draft, *target_side)

    monkeypatch.setattr(settling_module, "verify", watch)

    def drafted(*, merged: bool, swapped: bool) -> list[list[int]]:
        drafts.clear()
        target = Target(tiny_model().bfloat16(), tiny_tokenizer())
        drafter = tiny_drafter(target).bfloat16()
        for name, linear in adapted_linears(drafter).items():
            rows, columns = linear.weight.shape
            tensors.setdefault(f"{name}.lora_a", torch.randn(2, columns, generator=generator))
            tensors.setdefault(f"{name}.lora_b", torch.randn(rows, 2, generator=generator))
        adapter = AdapterWeights(1, tensors)
        if merged:
            AdapterSlot(drafter).swap(adapter)
        engine = build(target, "full", 3, make_drafter=lambda _: drafter, drafting="chain")
        if swapped:
            engine.swap_adapter(adapter)
        decode(engine, [Case(tuple(range(30, 50)), ())])
        return list(drafts)

    assert drafted(merged=False, swapped=True) == drafted(merged=True, swapped=False)
    assert drafted(merged=False, swapped=True) != drafted(merged=False, swapped=False)
