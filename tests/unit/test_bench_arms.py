"""Arms: how they are written, and how bad ones are told."""

from __future__ import annotations

import pytest

from evospec.bench.arms import ArmError, Drafting, check_peers, parse_arms
from evospec.config import EngineConfig
from evospec.errors import EvoSpecError


def test_plain_comes_first_and_every_arm_once() -> None:
    arms = parse_arms(["full", "plain", "full@auto", "evospec@tree", "transformers:static"], "auto")
    assert [arm.text for arm in arms] == ["plain", "full", "evospec@tree", "transformers:static"]
    assert [arm.policy for arm in arms] == ["plain", "full", "evospec", "transformers:static"]
    assert [arm.drafting and arm.drafting.text for arm in arms] == [None, "auto", "tree", None]
    assert [arm.peer for arm in arms] == [None, None, None, "static"]


def test_the_runs_drafting_is_that_of_bare_policies() -> None:
    _, bare, written = parse_arms(["full", "full@auto"], "chain:3")
    assert bare.drafting == Drafting("chain:3", "chain", (("draft_length", 3),))
    assert bare.text == "full"
    assert written.text == "full@auto"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("auto", {"drafting": "auto"}),
        ("chain", {"drafting": "chain", "draft_length": 5}),
        ("chain:2", {"drafting": "chain", "draft_length": 2}),
        ("tree", {"drafting": "tree", "tree_depth": 4, "tree_beam": 4, "tree_nodes": 12}),
        ("tree:3x5x20", {"drafting": "tree", "tree_depth": 3, "tree_beam": 5, "tree_nodes": 20}),
    ],
)
def test_drafting_sets_the_engines_sizes(text: str, sizes: dict[str, object]) -> None:
    config = Drafting.parse(text).apply(EngineConfig()).model_dump()
    assert sizes.items() <= config.items()


@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        ("fast", "unknown vocabulary policy 'fast'"),
        ("full@", "unknown drafting ''"),
        ("full@bush", "unknown drafting 'bush': write `auto`, `chain`, `tree`"),
        ("full@chain:", "unknown drafting 'chain:'"),
        ("full@chain:0", "unknown drafting 'chain:0'"),
        ("full@auto:3", "unknown drafting 'auto:3'"),
        ("full@tree:4x4", "unknown drafting 'tree:4x4'"),
        ("full@tree:4x4xmany", "unknown drafting 'tree:4x4xmany'"),
        ("full@chain:17", "drafting 'chain:17': draft_length: Input should be less than or equal to 16"),
        ("full@tree:9x4x12", "drafting 'tree:9x4x12': tree_depth: Input should be less than or equal to 8"),
        ("full@tree:1x4x5", "drafting 'tree:1x4x5': tree_nodes (5) exceeds the 4 candidates"),
        ("plain@tree", "plain takes no drafting; write 'plain'"),
        ("transformers:static@tree", "transformers:static takes no drafting"),
        ("transformers:fast", "unknown arm 'transformers:fast': choose one of `transformers`,"),
        ("transformersfast", "unknown arm 'transformersfast'"),
    ],
)
def test_bad_arms_are_told_in_one_line(arm: str, problem: str) -> None:
    with pytest.raises(EvoSpecError) as told:
        parse_arms([arm], "auto")
    assert problem in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("arm", "settings", "problem"),
    [
        ("transformers", (1, 0.7, None), "transformers decodes greedily here"),
        ("transformers:prompt-lookup", (2, 0.0, None), "decodes one request at a time"),
        ("transformers:assisted", (2, 0.0, "small"), "decodes one request at a time"),
        ("transformers:assisted", (1, 0.0, None), "name one with --assistant"),
    ],
)
def test_a_peer_that_cannot_do_what_is_asked_is_told(
    arm: str, settings: tuple[int, float, str | None], problem: str
) -> None:
    batch, temperature, assistant = settings
    with pytest.raises(ArmError, match=problem):
        check_peers(parse_arms([arm], "auto"), batch=batch, temperature=temperature, assistant=assistant)
