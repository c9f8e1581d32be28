"""Requests in flight across adapter swaps: their text is the one they have without any."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from actors.emission import Emission
from actors.engine_loop import EngineLoop, Outlets
from evospec.config import EngineConfig, VocabularyConfig
from evospec.engine.engine import Engine
from evospec.engine.observer import Learners
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import adapted_linears
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.vocab.policy import build_policy
from evospec.wire import Fingerprints
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.actors.fakes import wait_until

EOS = 256
NEW_TOKENS = 40
REQUESTS = 12
VERSIONS = 6

Texts = dict[int, tuple[int, ...]]


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def build(target: Target, drafting: str, **engine: Any) -> Engine:
    drafter = tiny_drafter(target)
    target.tap(drafter.config.tap_layers)
    settings = VocabularyConfig(policy="evospec", capacity=100, core=32, half_life=4)
    return Engine(
        target,
        drafter,
        EngineConfig(
            max_batch=4,
            max_length=128,
            prefill_chunk=16,
            drafting=drafting,
            draft_length=4,
            tree_depth=3,
            tree_beam=4,
            tree_nodes=11,
            **engine,
        ),
        Fingerprints(target="t", drafter="d", tokenizer="k"),
        learners=Learners(
            vocabulary=build_policy(settings, drafter.tables(target.tables), np.arange(260), [EOS], 4),
            ranked_k=4,
            prompt_ranked=8,
        ),
    )


def requests() -> list[Request]:
    """Half of them greedy, half with temperatures, top-k, top-p and seeds of their own."""
    rng = random.Random(0)
    made = []
    for index in range(REQUESTS):
        prompt = tuple(rng.randrange(256) for _ in range(rng.randrange(1, 60)))
        sampling = SamplingParams(
            temperature=0.4 * (index % 4) if index % 2 else 0.0,
            top_k=7 if index % 3 == 1 else 0,
            top_p=0.8 if index % 3 == 2 else 1.0,
            seed=index,
            max_tokens=NEW_TOKENS,
        )
        made.append(Request(str(index), prompt, sampling))
    return made


def adapters(drafter: Drafter, size: float = 0.3) -> list[AdapterWeights]:
    """Random ones, large enough to draft something else; the base comes first."""
    generator = torch.Generator().manual_seed(0)
    made = [AdapterWeights(0, {})]
    for version in range(1, VERSIONS + 1):
        tensors = {}
        for name, linear in adapted_linears(drafter).items():
            if (version + len(name)) % 3 == 0:  # versions do not adapt the same layers
                continue
            outputs, inputs = linear.weight.shape
            tensors[f"{name}.lora_a"] = torch.randn(2, inputs, generator=generator) * size
            tensors[f"{name}.lora_b"] = torch.randn(outputs, 2, generator=generator) * size
        made.append(AdapterWeights(version, tensors))
    return made


def decode(
    engine: Engine, between: Callable[[int], None] = lambda step: None, count: int = REQUESTS
) -> Texts:
    for request in requests()[:count]:
        engine.admit(request)
    written: Texts = {}
    step = 0
    while engine.has_work:
        for output in engine.step():
            index = int(output.request_id)
            written[index] = written.get(index, ()) + output.tokens
        between(step)
        step += 1
    return written


def swaps(engine: Engine, seen: list[int], every: int) -> Callable[[int], None]:
    """Any version after any other, the base among them."""
    assert engine.drafter is not None
    choice, rng = adapters(engine.drafter), random.Random(1)

    def swap(step: int) -> None:
        if step % every == 0:
            adapter = rng.choice(choice)
            engine.swap_adapter(adapter if step % 2 else engine.stage_adapter(adapter))
            seen.append(adapter.version)

    return swap


@pytest.fixture(scope="module")
def undisturbed(target: Target) -> Texts:
    """What the drafter's base alone gives; it is also the plain target's text."""
    texts = decode(build(target, "chain"))
    assert texts == decode(build(target, "tree"))
    return texts


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("drafting", ["chain", "tree", "auto"])
def test_swaps_up_down_and_to_the_base_change_no_token(
    target: Target, undisturbed: Texts, drafting: str, every: int
) -> None:
    engine, seen = build(target, drafting), [0]
    assert decode(engine, swaps(engine, seen, every)) == undisturbed
    assert engine.stats.adapter_swaps == len(seen) - 1 > 10
    moves = list(pairwise(seen))
    assert any(new > old for old, new in moves)
    assert any(0 < new < old for old, new in moves)
    assert any(new == 0 < old for old, new in moves)
    assert engine.stats.adapter_version == seen[-1]


def test_the_adapters_do_draft_something_else(target: Target) -> None:
    """Otherwise equal text would prove nothing."""
    accepted = set()
    for version in range(4):
        engine = build(target, "chain")
        assert engine.drafter is not None
        engine.swap_adapter(adapters(engine.drafter)[version])
        decode(engine, count=4)
        accepted.add(engine.stats.accepted_tokens)
    assert len(accepted) > 1


def test_drawn_drafts_keep_greedy_text_and_the_number_of_tokens(target: Target, undisturbed: Texts) -> None:
    """With `sampled_drafts: drawn` a seed does not fix the text, with swaps or without."""
    engine, seen = build(target, "chain", sampled_drafts="drawn"), [0]
    written = decode(engine, swaps(engine, seen, 1))
    for request in requests():
        index = int(request.id)
        if request.sampling.greedy:
            assert written[index] == undisturbed[index]
        assert len(written[index]) == NEW_TOKENS or written[index][-1] == EOS


def test_back_at_the_base_not_a_bit_is_left_of_what_was_swapped_in(target: Target) -> None:
    engine = build(target, "chain")
    assert engine.drafter is not None
    linears = adapted_linears(engine.drafter)
    before = {name: linear.weight.clone() for name, linear in linears.items()}
    for adapter in adapters(engine.drafter)[1:]:
        engine.swap_adapter(engine.stage_adapter(adapter))
        named = set(adapter.general.linear_names())
        changed = {name for name, linear in linears.items() if not torch.equal(linear.weight, before[name])}
        assert changed == named
    engine.swap_adapter(engine.stage_adapter(AdapterWeights(0, {})))
    assert all(torch.equal(linear.weight, before[name]) for name, linear in linears.items())
    assert engine.stats.adapter_version == 0


def test_staging_beside_a_running_version_leaves_it_alone(target: Target) -> None:
    engine = build(target, "chain")
    assert engine.drafter is not None
    _, first, second, *_ = adapters(engine.drafter)
    engine.swap_adapter(first)
    linears = adapted_linears(engine.drafter)
    running = {name: linear.weight.clone() for name, linear in linears.items()}
    staged = engine.stage_adapter(second)
    assert all(torch.equal(linear.weight, running[name]) for name, linear in linears.items())
    assert engine.stats.adapter_version == 1
    engine.swap_adapter(staged)
    merged = {name: linear.weight.clone() for name, linear in linears.items()}
    engine.swap_adapter(None)
    engine.swap_adapter(second)
    assert all(torch.equal(linear.weight, merged[name]) for name, linear in linears.items())


def test_a_swap_that_touches_the_target_is_caught(target: Target, undisturbed: Texts) -> None:
    """Planted bug: what these tests would see if a swap wrote where it must not."""
    engine = build(target, "chain")
    norm = target.model.get_decoder().norm.weight
    original = norm.detach().clone()

    def slip(step: int) -> None:
        if step == 5:
            norm.mul_(torch.linspace(0.5, 2.0, len(norm)))

    try:
        with torch.no_grad():
            assert decode(engine, slip) != undisturbed
    finally:
        with torch.no_grad():
            norm.copy_(original)


# --- through the loop that serves ---


class Inbox:
    """What one request is delivered; `react` is called at each delivery, on the engine's thread."""

    def __init__(self, react: Callable[[], None] = lambda: None) -> None:
        self.emissions: list[Emission] = []
        self.failure: EvoSpecError | None = None
        self.finished = False
        self._react = react

    def __call__(self, item: Emission | EvoSpecError) -> None:
        if isinstance(item, EvoSpecError):
            self.failure = item
        else:
            self.emissions.append(item)
            self._react()
        self.finished = self.failure is not None or self.emissions[-1].output.finish_reason is not None


@pytest.fixture
def engine(target: Target) -> Engine:
    return build(target, "chain")


@pytest.fixture
def loop(engine: Engine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    yield loop
    loop.stop()


def test_served_requests_get_their_text_and_are_credited_to_the_versions_that_drafted(
    engine: Engine, loop: EngineLoop, undisturbed: Texts
) -> None:
    assert engine.drafter is not None
    choice = [engine.stage_adapter(adapter) for adapter in adapters(engine.drafter)]
    rng, swapped = random.Random(2), list[Future[None]]()
    # Asked for while a cycle's outputs are delivered, a swap comes before the next cycle.
    inboxes = [Inbox(lambda: swapped.append(loop.swap(rng.choice(choice)))) for _ in range(REQUESTS)]
    loop.start(Outlets())
    for request, inbox in zip(requests(), inboxes, strict=True):
        loop.admit(request, inbox)
    wait_until(lambda: all(inbox.finished for inbox in inboxes))
    for future in swapped:
        future.result(60)
    texts = {
        index: tuple(token for emission in inbox.emissions for token in emission.output.tokens)
        for index, inbox in enumerate(inboxes)
    }
    assert texts == undisturbed
    cycles: dict[int, list[int]] = {}  # tokens of each cycle by version; a request's first is prefill's
    for inbox in inboxes:
        for emission in inbox.emissions[1:]:
            cycles.setdefault(emission.adapter_version, []).append(len(emission.output.tokens))
    arms = loop.arms()
    assert len(arms) > 1
    assert {version: (sums.cycles, sums.tokens) for version, sums in arms.items()} == {
        version: (len(tokens), sum(tokens)) for version, tokens in cycles.items()
    }
