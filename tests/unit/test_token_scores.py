"""Log-probabilities of emitted tokens are the target's own, and cost nobody who didn't ask for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evospec.engine.engine import Engine
from evospec.engine.passes import Step
from evospec.engine.request import Request, SamplingParams
from evospec.engine.runner import Runner
from evospec.engine.sizes import Sizes
from evospec.engine.token_scores import MOST_ALTERNATIVES, TokenScore
from evospec.errors import InvalidRequestError
from tests.tiny import tiny_model, tiny_target
from tests.unit.test_engine_exact import build

TARGET = tiny_target()
REFERENCE = tiny_model()
REFERENCE.set_attn_implementation("sdpa")  # transformers' own
PROMPTS = [tuple(range(30 + 7 * number, 41 + 9 * number)) for number in range(7)]
DRAFTING = [
    {"draft_length": 0},
    {"draft_length": 4, "drafting": "chain"},
    {"draft_length": 3, "drafting": "tree", "tree_depth": 3, "tree_beam": 4, "tree_nodes": 11},
    {"draft_length": 3, "drafting": "chain", "sampled_drafts": "drawn"},
    {"draft_length": 4, "drafting": "auto"},
]


def ask(engine: Engine, wanted: list[int | None], **sampling: Any) -> dict[int, tuple[TokenScore, ...]]:
    """One request for each number of alternatives; odd ones are sampled."""
    for index, alternatives in enumerate(wanted):
        params = SamplingParams(temperature=0.8 * (index % 2), seed=index, max_tokens=24, **sampling)
        engine.admit(Request(str(index), PROMPTS[index], params, logprobs=alternatives))
    found: dict[int, tuple[TokenScore, ...]] = {}
    while engine.has_work:
        for output in engine.step():
            index = int(output.request_id)
            if wanted[index] is None:
                assert output.scores == ()
            else:
                assert tuple(score.token for score in output.scores) == output.tokens
            found[index] = found.get(index, ()) + output.scores
    return found


def assert_is_the_targets(prompt: tuple[int, ...], scores: tuple[TokenScore, ...], alternatives: int) -> None:
    ids = torch.tensor([[*prompt, *(score.token for score in scores)]])
    with torch.inference_mode():
        logits = REFERENCE(ids).logits[0, len(prompt) - 1 : -1]
    expected = logits.float().log_softmax(dim=-1)
    for place, score in zip(expected, scores, strict=True):
        assert score.logprob == pytest.approx(float(place[score.token]), abs=1e-4)
        best = place.topk(alternatives) if alternatives else None
        assert [token for token, _ in score.alternatives] == ([] if best is None else best.indices.tolist())
        for token, logprob in score.alternatives:
            assert logprob == pytest.approx(float(place[token]), abs=1e-4)


@pytest.mark.parametrize(("overlap", "rounded"), [("off", False), ("on", True)], ids=["cpu", "as on cuda"])
@pytest.mark.parametrize("settings", DRAFTING, ids=str)
def test_they_are_the_targets_before_temperature(
    settings: dict[str, Any], overlap: str, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sizes, "of", lambda _: Sizes(rounded=rounded))
    policy = "evospec" if settings["draft_length"] else None
    engine = build(TARGET, policy, overlap=overlap, max_batch=3, **settings)
    wanted = [0, 5, None, 20, None, 1, 2]
    found = ask(engine, wanted, top_p=0.9)
    for index, alternatives in enumerate(wanted):
        if alternatives is not None:
            assert_is_the_targets(PROMPTS[index], found[index], alternatives)


def test_the_tokens_are_the_same_with_and_without() -> None:
    def text(logprobs: int | None) -> list[int]:
        engine = build(TARGET, "evospec", 4)
        engine.admit(Request("r", PROMPTS[0], SamplingParams(max_tokens=40), logprobs=logprobs))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        return [token for output in outputs for token in output.tokens]

    assert text(None) == text(0) == text(20)


def test_cycles_in_which_nobody_asks_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle's kernels follow from its `Step`: that differs only while a request runs that asks."""
    steps: list[tuple[set[str], Step]] = []
    original = Runner.step

    def step(self: Runner, states: Any, *others: Any) -> Step:
        made = original(self, states, *others)
        steps.append(({state.request.id for state in states}, made))
        return made

    monkeypatch.setattr(Runner, "step", step)
    engine = build(TARGET, "evospec", 4)
    engine.admit(Request("asks", PROMPTS[0], SamplingParams(max_tokens=5, ignore_eos=True), logprobs=3))
    engine.admit(Request("other", PROMPTS[1], SamplingParams(max_tokens=60, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    kinds = {("asks" in ids, made.report.alternatives) for ids, made in steps}
    assert kinds == {(True, MOST_ALTERNATIVES), (False, None)}


@pytest.mark.parametrize("alternatives", [-1, 21])
def test_more_than_there_are_is_refused(alternatives: int) -> None:
    engine = build(TARGET, "evospec", 4)
    with pytest.raises(InvalidRequestError) as refused:
        engine.admit(Request("r", PROMPTS[0], SamplingParams(max_tokens=4), logprobs=alternatives))
    assert refused.value.param == "logprobs"
