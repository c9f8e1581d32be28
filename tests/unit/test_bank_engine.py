"""Requests of different kinds in one batch, each drafting with the adapter of its kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evospec.config import EngineConfig
from evospec.decoding.draft import Draft
from evospec.engine.batch_state import BatchState
from evospec.engine.drafting import Drafting
from evospec.engine.engine import Engine
from evospec.engine.passes import Step
from evospec.engine.request import Request, SamplingParams
from evospec.engine.sizes import Sizes
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.bank import Bank
from evospec.models.deltas import Deltas
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import Window
from evospec.models.target import Target
from evospec.vocab.head_rows import HeadView
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_model, tiny_tokenizer
from tests.unit.banks import bank_of, random_deltas, routes_to

KINDS = 3
REQUESTS = 12
CHUNK = 64  # tokens: prompts of up to as many are read at once
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

Texts = dict[str, tuple[int, ...]]
Drafts = dict[str, list[list[int]]]


@pytest.fixture(scope="module", params=DEVICES)
def target(request: pytest.FixtureRequest) -> Target:
    return Target(tiny_model().to(request.param), tiny_tokenizer())


@pytest.fixture(scope="module")
def cpu() -> Target:
    return Target(tiny_model(), tiny_tokenizer())


def build(
    target: Target,
    drafting: str = "chain",
    *,
    adapters: int = KINDS,
    max_batch: int = 4,
    chunk: int = CHUNK,
    overlap: str = "off",
    sizes: Sizes | None = None,
) -> Engine:
    tiny = tiny_drafter(target)
    torch.manual_seed(1)
    # The least head size that kernels take.
    drafter = Drafter(tiny.config.model_copy(update={"head_dim": 16})).requires_grad_(False).eval()
    target.tap(drafter.config.tap_layers)
    config = EngineConfig(
        max_batch=max_batch,
        max_length=160,
        prefill_chunk=chunk,
        drafting=drafting,
        draft_length=4,
        tree_depth=3,
        tree_beam=4,
        tree_nodes=11,
        overlap=overlap,
    )
    fingerprints = Fingerprints(target="t", drafter="d", tokenizer="k")
    drafter = drafter.to(target.device)
    return Engine(target, drafter, config, fingerprints, sizes=sizes, adapters=adapters)


def requests(longest: int = CHUNK - 4) -> list[Request]:
    """Half of them greedy; they end at different times, so that others move."""
    rng = random.Random(3)
    return [
        Request(
            str(index),
            tuple(rng.randrange(256) for _ in range(rng.randrange(2, longest))),
            SamplingParams(
                temperature=0.7 * (index % 2), seed=index, max_tokens=rng.randrange(5, 40), ignore_eos=True
            ),
        )
        for index in range(REQUESTS)
    ]


def decode(
    engine: Engine, asked: Sequence[Request], between: Callable[[int], None] = lambda step: None
) -> Texts:
    for request in asked:
        engine.admit(request)
    texts: Texts = {}
    step = 0
    while engine.has_work:
        for output in engine.step():
            texts[output.request_id] = texts.get(output.request_id, ()) + output.tokens
        between(step)
        step += 1
    return texts


def plainly(target: Target, asked: Sequence[Request]) -> Texts:
    config = EngineConfig(max_batch=1, max_length=160)
    return decode(Engine(target, None, config, Fingerprints(target="t", drafter="d", tokenizer="k")), asked)


def context(target: Target, prompt: Sequence[int]) -> Tensor:
    tokens = torch.tensor([prompt], device=target.device)
    window = Window.of([0], len(prompt), target.device)
    hidden = target.forward(tokens, window, target.new_cache(1, len(prompt))).hidden
    return normalize(hidden[0].float().mean(0), dim=0).cpu()


def bank(engine: Engine, kinds: int = KINDS, seed: int = 0, least: float = -1.0) -> Bank:
    """The first prompts are the kinds; random adapters, large enough to draft something else."""
    assert engine.drafter is not None
    centres = [context(engine.target, request.prompt_ids) for request in requests()[:kinds]]
    adapters = [random_deltas(engine.drafter, 10 * seed + kind) for kind in range(kinds)]
    return bank_of(centres, adapters, least)


def version(bank: Bank | None, number: int = 1) -> AdapterWeights:
    return AdapterWeights(number, {}, bank=bank)


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine, Sequence[Request]], Drafts]:
    """Decodes and tells what was drafted for each request, cycle by cycle."""
    original = Drafting.draft

    def decoded(engine: Engine, asked: Sequence[Request]) -> Drafts:
        seen: Drafts = {request.id: [] for request in asked}

        def draft(self: Drafting, state: BatchState, step: Step, head: HeadView) -> Draft | None:
            drafted = original(self, state, step, head)
            assert drafted is not None
            for running, tokens in zip(engine._scheduler.running, drafted.tokens.tolist(), strict=False):
                seen[running.request.id].append(tokens)
            return drafted

        monkeypatch.setattr(Drafting, "draft", draft)
        decode(engine, asked)
        monkeypatch.setattr(Drafting, "draft", original)
        return seen

    return decoded


Recording = Callable[[Engine, Sequence[Request]], Drafts]


# --- text ---


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("drafting", ["chain", "tree", "auto"])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_bank_changes_no_token(target: Target, drafting: str, overlap: str, rounded: bool) -> None:
    engine = build(target, drafting, overlap=overlap, sizes=Sizes(rounded=rounded), chunk=24)
    engine.prepare()
    engine.swap_adapter(version(bank(engine)))
    asked = requests()
    assert decode(engine, asked) == plainly(target, asked)
    choices = engine.stats.requests_per_choice
    assert sum(choices.values()) == REQUESTS
    assert choices.keys() == {1, 2, 3}


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("drafting", ["chain", "tree"])
def test_swaps_to_more_kinds_to_fewer_and_to_none_change_no_token(
    target: Target, drafting: str, overlap: str
) -> None:
    engine = build(target, drafting, overlap=overlap, chunk=24)
    assert engine.drafter is not None
    one = AdapterWeights(5, random_deltas(engine.drafter, 99).tensors)
    offered: list[AdapterWeights | None] = [
        version(bank(engine, kinds, seed=kinds), kinds) for kinds in (3, 1, 2, 3)
    ]
    offered += [None, one, replace(one, version=6, bank=bank(engine, 2, seed=7))]
    rng, seen = random.Random(0), list[int]()

    def swap(step: int) -> None:
        if step % 2:
            adapter = rng.choice(offered)
            staged = adapter if adapter is None or step % 4 == 1 else engine.stage_adapter(adapter)
            engine.swap_adapter(staged)
            seen.append(0 if adapter is None else adapter.version)

    asked = requests()
    assert decode(engine, asked, swap) == plainly(target, asked)
    assert len(set(seen)) == 6
    assert len(engine.stats.requests_per_choice) >= 3


# --- drafts ---


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("drafting", ["chain", "tree"])
def test_what_is_drafted_does_not_depend_on_who_stands_beside_it(
    cpu: Target, drafts: Recording, drafting: str, rounded: bool
) -> None:
    asked, sizes = requests(), Sizes(rounded=rounded)
    mixed = build(cpu, drafting, sizes=sizes)
    mixed.swap_adapter(version(bank(mixed)))
    together = drafts(mixed, asked)
    alone: Drafts = {}
    for request in asked:
        single = build(cpu, drafting, max_batch=1)
        single.swap_adapter(version(bank(single)))
        alone |= drafts(single, [request])
    assert together == alone
    assert mixed.stats.cycles < sum(len(cycles) for cycles in alone.values())


@pytest.mark.parametrize("drafting", ["chain", "tree"])
def test_a_kind_drafts_as_if_its_adapter_were_the_only_one(
    cpu: Target, drafts: Recording, drafting: str
) -> None:
    asked = requests()
    mixed = build(cpu, drafting)
    found = bank(mixed, least=0.5)
    found = replace(found, adapters=(found.adapters[0], Deltas({}), found.adapters[2]))
    mixed.swap_adapter(version(found))
    together = drafts(mixed, asked)
    contexts = torch.stack([context(cpu, request.prompt_ids) for request in asked])
    choices = found.routes.choose(contexts).tolist()
    assert set(choices) == {0, 1, 2, 3}
    variants: list[Drafts] = []
    for deltas in (Deltas({}), *found.adapters):
        only = build(cpu, drafting, adapters=0)
        only.swap_adapter(AdapterWeights(1, deltas.tensors))
        variants.append(drafts(only, asked))
    for request, choice in zip(asked, choices, strict=True):
        assert together[request.id] == variants[choice][request.id]
    # Otherwise equal drafts would prove nothing.
    assert all(variants[1][name] != variants[0][name] != variants[3][name] for name in together)
    assert variants[2] == variants[0]


def test_requests_of_no_kind_get_what_a_version_holds_for_all(cpu: Target, drafts: Recording) -> None:
    engine, only, asked = build(cpu), build(cpu, adapters=0), requests()
    assert engine.drafter is not None
    general = random_deltas(engine.drafter, 50).tensors
    engine.swap_adapter(AdapterWeights(1, general, bank=bank(engine, least=2.0)))
    only.swap_adapter(AdapterWeights(1, general))
    assert drafts(engine, asked) == drafts(only, asked)
    assert engine.stats.requests_per_choice == {0: REQUESTS}
    assert only.stats.requests_per_choice == {}


# --- choices ---


@pytest.mark.parametrize("chunk", [16, CHUNK])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_choice_is_that_of_the_prompt_and_stays(target: Target, chunk: int, rounded: bool) -> None:
    engine = build(target, chunk=chunk, max_batch=REQUESTS, sizes=Sizes(rounded=rounded))
    asked = [replace(request, sampling=SamplingParams(max_tokens=90)) for request in requests()]
    found = bank(engine)
    more = torch.cat((found.routes.centres, context(target, asked[5].prompt_ids)[None]))
    found = replace(found, routes=routes_to(more, kinds=(0, 1, 2, 1)))
    engine.swap_adapter(version(found))
    expected = found.routes.choose(torch.stack([context(target, each.prompt_ids) for each in asked])).tolist()

    assert expected[5] == 2

    def choices() -> dict[str, int]:
        state = engine._stepper.runner.slots.state
        return {running.request.id: int(state.choice[running.slot]) for running in engine._scheduler.running}

    for request in asked:
        engine.admit(request)
    while engine.has_work and len(engine._scheduler.running) < REQUESTS:
        engine.step()
    assert choices() == dict(zip((each.id for each in asked), expected, strict=True))
    engine.swap_adapter(version(replace(found, routes=routes_to(more, least=2.0, kinds=(0, 1, 2, 1))), 2))
    engine.cancel("0")
    engine.step()
    engine.step()
    kept = choices()
    assert "0" not in kept
    assert kept == {each.id: choice for each, choice in zip(asked, expected, strict=True) if each.id in kept}
    assert len(kept) > REQUESTS // 2


# --- weights ---


def weights_of(engine: Engine) -> dict[str, Tensor]:
    places = engine._stepper.runner.bank
    assert places is not None
    return {name: tensor.cpu().clone() for name, tensor in places.targets.items()}


def test_each_variant_is_the_base_with_its_deltas(target: Target) -> None:
    engine = build(target)
    base = weights_of(engine)
    found = bank(engine, 2)
    assert engine.drafter is not None
    general = random_deltas(engine.drafter, 5)
    engine.swap_adapter(AdapterWeights(1, general.tensors, bank=found))
    written = weights_of(engine)
    for name in general.deltas():
        for variant, deltas in enumerate((general, *found.adapters, general)):
            torch.testing.assert_close(written[name][variant], base[name][0] + deltas.deltas()[name])
        assert torch.equal(engine.drafter.get_parameter(name).cpu(), written[name][0])
    least = written["routes.least"]
    assert (least[:2] == -1).all()
    assert (least[2:] == torch.inf).all()
    assert written["routes.kinds"][:2].tolist() == [0, 1]
    engine.swap_adapter(None)
    assert all(torch.equal(tensor, base[name]) for name, tensor in weights_of(engine).items())


@pytest.mark.parametrize("adapters", [0, 2])
def test_more_kinds_than_there_is_room_for_are_refused(cpu: Target, adapters: int) -> None:
    engine = build(cpu, adapters=adapters)
    with pytest.raises(WireError, match=rf"version 1 .* room for {adapters} .* alignment.adapters to 3$"):
        engine.swap_adapter(version(bank(engine)))
    assert engine.stats.adapter_swaps == 0


def test_without_room_nothing_is_kept(cpu: Target) -> None:
    engine = build(cpu, adapters=0)
    assert engine._stepper.runner.bank is None
    assert engine._stepper.runner.slots.contexts is None
