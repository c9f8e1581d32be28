"""Streams that change their topic: order, what is counted after switches, and the whole bench."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evospec.bench.batches import EncodedPrompt
from evospec.bench.measure import Covered, Turn
from evospec.bench.prompts import Prompt, PromptFileError
from evospec.bench.results import Results
from evospec.bench.settings import DecodeSettings, Lessons
from evospec.bench.stream import StreamBench, StreamSettings, in_turns
from evospec.bench.stream_command import run_stream
from evospec.bench.stream_summary import bucketed, coverage_of, summarise_stream
from evospec.config import VocabularyConfig
from tests.tiny import tiny_folders
from tests.unit.bench_kit import batch_of, turn_of


def prompts_of(counts: dict[str, int]) -> list[EncodedPrompt]:
    return [
        EncodedPrompt(Prompt(f"{topic}{number}", topic, topic), (1, 2))
        for topic, count in counts.items()
        for number in range(count)
    ]


def test_topics_take_turns() -> None:
    order = in_turns(prompts_of({"law": 5, "code": 4}), every=2, rounds=2)
    assert [prompt.prompt.id for prompt in order] == [
        *("law0", "law1", "code0", "code1"),
        *("law2", "law3", "code2", "code3"),
    ]


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ({"law": 9}, "at least two topics, the prompts are all of law"),
        ({"law": 9, "code": 3}, "topic code has 3 prompts that fit, 2 rounds of 2 need 4"),
    ],
)
def test_too_few_prompts_are_told(counts: dict[str, int], problem: str) -> None:
    with pytest.raises(PromptFileError, match=problem):
        in_turns(prompts_of(counts), every=2, rounds=2)


def test_buckets_hold_as_many_tokens_each() -> None:
    steps = [Covered(3, 3), Covered(1, 4), Covered(2, 2), Covered(0, 2)]
    assert bucketed(steps, 5) == [Covered(4, 5), Covered(2, 5), Covered(0, 1)]
    assert bucketed([Covered(7, 12)], 5) == [Covered(5, 5), Covered(2, 5), Covered(0, 2)]
    assert bucketed([], 5) == []


def test_coverage_is_over_tokens_not_over_steps() -> None:
    assert coverage_of([Covered(1, 1), Covered(0, 3)]) == 0.25
    assert coverage_of([]) is None


def turn(place: int, topic: str, *steps: Covered) -> Turn:
    return replace(turn_of("full", batch_of(place, topic), [5, 6], 1.0), coverage=steps)


def test_requests_are_counted_from_the_switch_and_the_first_topic_is_none() -> None:
    bad, good = Covered(10, 20), Covered(20, 20)
    turns = [
        turn(0, "law", bad),
        turn(1, "law", bad),
        turn(2, "code", bad, good),
        turn(3, "code", good),
        turn(4, "law", good, bad),
        turn(5, "law", good),
    ]
    stream = summarise_stream(turns, ["full"])
    assert [request.since_switch for request in stream.requests] == [1, 2, 1, 2, 1, 2]
    assert [request.topic for request in stream.requests] == ["law", "law", "code", "code", "law", "law"]
    assert stream.requests[2].coverage == 0.75
    assert stream.requests[2].first_coverage == 0.5
    (after,) = stream.arms
    assert after.switches == 2
    assert [(nth.number, nth.requests) for nth in after.requests] == [(1, 2), (2, 2)]
    assert after.requests[0].coverage == 0.75
    assert after.requests[0].first_coverage == 0.75
    assert after.requests[1].coverage == 1.0
    assert after.buckets == (0.75, 0.75, 1.0)
    assert after.recovered_after == 40


def test_what_never_recovers_is_told() -> None:
    turns = [turn(0, "law", Covered(20, 20)), turn(1, "code", Covered(19, 20))]
    (after,) = summarise_stream(turns, ["full"]).arms
    assert after.recovered_after is None
    (unknown,) = summarise_stream([turn(0, "law"), turn(1, "code")], ["full"]).arms
    assert unknown.buckets == ()
    assert unknown.requests[0].coverage is None


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> StreamSettings:
    folder = tmp_path_factory.mktemp("stream")
    folders = tiny_folders(folder)
    rows = [
        {"prompt": f"{topic} {number}", "domain": topic, "split": "eval" if number < 2 else "adapt"}
        for topic in ("law", "code")
        for number in range(3)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    decode = DecodeSettings(
        target=str(folders.target),
        drafter=str(folders.drafter),
        prompts=(file,),
        split="eval",
        policies=("full", "evospec"),
        drafting="chain",
        device="cpu",
        dtype="float32",
        max_tokens=10,
        profile=False,
        vocabulary=VocabularyConfig(capacity=128, core=32),
        lessons=Lessons((file,), "adapt"),
    )
    return StreamSettings(decode, every=1, rounds=2)


def test_a_stream_is_decoded_and_reported(settings: StreamSettings, tmp_path: Path) -> None:
    run_stream(settings, tmp_path)
    results = Results.read(tmp_path / "results.json")
    assert not results.failures
    assert results.stream is not None
    assert [(each.arm, each.switches) for each in results.stream.arms] == [("full", 3), ("evospec", 3)]
    topics = [each.topic for each in results.stream.requests if each.arm == "evospec"]
    assert topics == ["law", "code", "law", "code"]
    full = [each for each in results.stream.requests if each.arm == "full"]
    assert {each.coverage for each in full} == {1.0}
    assert all(nth.requests == 3 for each in results.stream.arms for nth in each.requests)
    assert results.settings["warm"] == ["prompts.jsonl"]
    report = (tmp_path / "report.md").read_text()
    for plot in ("stream.png", "after_switch.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
        assert f"({plot})" in report


def test_only_policies_that_change_learn_before_the_stream(settings: StreamSettings) -> None:
    stream = StreamBench.load(settings)
    learned = list(stream.bench.learn())
    assert [(turn.arm, turn.batch.domain) for turn in learned] == [("evospec", "law"), ("evospec", "code")]
    (evospec,) = stream.bench.learners
    assert evospec.retrieval.index.count() == 2
