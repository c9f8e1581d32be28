"""Streams that drafters adapt to: arms, conversations that go on, recovery, and the whole bench."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evospec.align.trainer import AlignmentTrainer
from evospec.bench.align_arms import DEFAULT_ARMS, AlignArm, parse_align_arms
from evospec.bench.align_command import run_align_stream
from evospec.bench.align_records import StreamChunk
from evospec.bench.align_stream import AlignStreamSettings
from evospec.bench.align_summary import late_gain, recovered_after, visits_of
from evospec.bench.arms import ArmError
from evospec.bench.batches import EncodedPrompt
from evospec.bench.cli import bench
from evospec.bench.conversations import FOLLOW_UPS, Conversations
from evospec.bench.prompts import Prompt, PromptFileError
from evospec.bench.results import Results
from evospec.bench.settings import DecodeSettings
from evospec.config import VocabularyConfig
from evospec.errors import WireError
from evospec.models.chat import encode_turns
from tests.tiny import TinyFolders, tiny_folders, tiny_tokenizer

SMALL = ":trace_positions=16:trace_top_k=8:min_traces=2:rank=4:steps_per_version=2:learning_rate=0.01"


def arm_names(arms: list[AlignArm]) -> list[str]:
    return [arm.text for arm in arms]


def test_no_adaptation_is_always_compared_with() -> None:
    arms = parse_align_arms(["lora", "lora@full", "none@full", "lora"], "evospec")
    assert arm_names(arms) == ["none", "none@full", "lora", "lora@full"]
    assert [arm.policy for arm in arms] == ["evospec", "full", "evospec", "full"]
    assert [arm.adapts for arm in arms] == [False, False, True, True]


def test_baselines_are_what_they_are_called() -> None:
    _, lora, osd, standard = parse_align_arms(DEFAULT_ARMS.split(","), "full")
    assert (lora.config.method, lora.update_every, lora.gated) == ("lora", 1, True)
    for arm, rows, positions in ((osd, "active", "wrong"), (standard, "vocabulary", "all")):
        assert (arm.config.method, arm.config.loss_rows) == ("full-parameter", rows)
        assert (arm.config.positions, arm.update_every, arm.gated) == (positions, 8, False)


def test_options_are_those_of_alignment() -> None:
    _, arm = parse_align_arms(["lora:rank=4:norms=true:curriculum=hard-first:gated=no@fr-spec:64"], "full")
    assert (arm.config.rank, arm.config.norms, arm.config.curriculum) == (4, True, "hard-first")
    assert (arm.gated, arm.policy) == (False, "fr-spec:64")
    _, bank = parse_align_arms(["lora:adapters=4"], "full")
    assert bank.config.adapters == 4
    written = "full-parameter:positions=all:adapters=4:publish_rank=128:blend=1"
    _, whole = parse_align_arms([written], "full")
    assert (whole.config.adapters, whole.config.publish_rank, whole.config.positions) == (4, 128, "all")
    with pytest.raises(ArmError, match="adapters: 4 publishes low-rank deltas, method: full-parameter whole"):
        parse_align_arms([written.replace(":publish_rank=128", "")], "full")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dora", "unknown arm 'dora': choose one of none, lora"),
        ("lora:rank", "write options as name=value"),
        ("none:rank=4", "after a kind that adapts"),
        ("lora:rank=0", "rank: Input should be greater"),
        ("lora:ranks=4", "ranks: Extra inputs"),
        ("lora:update_every=0", "update_every is 0"),
        ("lora:gated=perhaps", "option: "),
        ("lora:adapters=4:norms=true", "adapters: 4 shares all but linear layers"),
        ("lora:positions=wrong:position_weights=reach", "set position_weights to decay"),
    ],
)
def test_arms_that_cannot_be_are_told(text: str, problem: str) -> None:
    with pytest.raises(ArmError, match=problem):
        parse_align_arms([text], "full")


def conversations(room: int = 400) -> Conversations:
    tokenizer = tiny_tokenizer()
    prompts = [
        EncodedPrompt(Prompt(name, "law", name), encode_turns(tokenizer, [name], chat=True)) for name in "ab"
    ]
    return Conversations(tokenizer, prompts, room, chat=True)


def test_used_up_prompts_go_on_with_their_answers() -> None:
    talks = conversations()
    first, second = talks.ask(), talks.ask()
    assert [one.token_ids for one in (first, second)] == [one.token_ids for one in talks.prompts]
    talks.answered(first.key, [*talks.tokenizer("yes").input_ids, 256])
    third = talks.ask()
    assert (third.key, third.turn) == (first.key, 1)
    assert third.token_ids == encode_turns(talks.tokenizer, ["a", "yes", FOLLOW_UPS[0]], chat=True)
    talks.ask()
    talks.answered(first.key, talks.tokenizer("no").input_ids)
    assert talks.ask().token_ids == encode_turns(talks.tokenizer, ["a", "no", FOLLOW_UPS[1]], chat=True)


def test_conversations_that_grow_too_long_begin_again() -> None:
    talks = conversations(room=90)
    first, _ = talks.ask(), talks.ask()
    talks.answered(first.key, talks.tokenizer("long " * 40).input_ids)
    turns = [f"a\n\n{FOLLOW_UPS[0]}"]
    assert talks.ask().token_ids == encode_turns(talks.tokenizer, turns, chat=True)
    talks = conversations(room=10)
    assert [talks.ask().token_ids for _ in range(4)] == [one.token_ids for one in talks.prompts] * 2


def chunk(arm: str, place: int, visit: int, topic: str, length: float) -> StreamChunk:
    return StreamChunk(
        arm=arm,
        place=place,
        visit=visit,
        topic=topic,
        requests=8,
        tokens=80,
        drafts=100,
        accepted=round(100 * (length - 1)),
        acceptance_length=length,
        adapter_version=0,
        same_output=1.0,
        seconds=1.0,
    )


def visit_of(arm: str, visit: int, topic: str, lengths: list[float]) -> list[StreamChunk]:
    return [chunk(arm, 8 * (4 * visit + n), visit, topic, length) for n, length in enumerate(lengths)]


def test_gains_are_on_the_same_requests_and_recovery_is_of_the_topics_last_plateau() -> None:
    none, lora = parse_align_arms(["lora"], "full")
    base = [2.0, 1.5, 2.0, 1.5]
    slow = [2.0, 1.5, 2.5, 1.9]
    quick = [2.6, 1.95, 2.6, 1.95]
    chunks = [
        *(
            each
            for visit, topic in enumerate(("law", "code", "law"))
            for each in visit_of("none", visit, topic, base)
        ),
        *visit_of("lora", 0, "law", slow),
        *visit_of("lora", 1, "code", base),
        *visit_of("lora", 2, "law", quick),
    ]
    visits = {one.visit: one for one in visits_of(chunks, {"none": none, "lora": lora}) if one.arm == "lora"}
    assert visits[2].late_gain == pytest.approx(1.3)
    assert (visits[0].returns, visits[1].returns, visits[2].returns) == (False, False, True)
    assert visits[0].recovered_after == 16  # 1.25 is 0.95 of 1.3 or more, and two chunks make a window
    assert visits[1].recovered_after == 0
    assert visits[2].recovered_after == 0
    assert visits[1].gain == pytest.approx(1.0)
    assert all(
        one.gain == 1.0 for one in visits_of(chunks, {"none": none, "lora": lora}) if one.arm == "none"
    )


def test_what_never_comes_back_is_told() -> None:
    own, base = visit_of("lora", 0, "law", [2.0] * 4), visit_of("none", 0, "law", [2.0] * 4)
    assert recovered_after(own, base, plateau=1.2) is None
    assert late_gain(own, base) == 1.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"{split} {topic} {number}", "domain": topic, "split": split}
        for topic in ("law", "code", "general")
        for split in ("adapt", "eval")
        for number in range(3)
    ]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.fixture
def settings(folders: TinyFolders, prompt_file: Path) -> AlignStreamSettings:
    decode = DecodeSettings(
        target=str(folders.target),
        drafter=str(folders.drafter),
        prompts=(prompt_file,),
        policies=("evospec",),
        drafting="chain",
        device="cpu",
        dtype="float32",
        batch=2,
        max_tokens=24,
        draft_length=3,
        profile=False,
        vocabulary=VocabularyConfig(capacity=128, core=32),
    )
    kinds = ("lora", "full-parameter", "full-parameter+full-loss")
    return AlignStreamSettings(
        decode, tuple(kind + SMALL for kind in kinds), topics=("law", "code"), every=5, rounds=2, eval_limit=2
    )


def test_a_stream_adapts_drafters_and_is_reported(settings: AlignStreamSettings, tmp_path: Path) -> None:
    run_align_stream(settings, tmp_path)
    results = Results.read(tmp_path / "results.json")
    found = results.alignment
    assert found is not None
    assert (found.planned, found.requests, found.continued, found.failures) == (20, 20, 14, ())
    arms = list(dict.fromkeys(run.name for run in results.runs))
    assert [name.partition(":")[0] for name in arms] == [
        "none",
        "lora",
        "full-parameter",
        "full-parameter+full-loss",
    ]
    assert {(run.domain, run.prompts) for run in results.runs} == {("law", 2), ("code", 2), ("general", 2)}
    # Whatever the drafter has become, the text is the target's.
    assert {each.same_output for each in found.chunks} == {1.0}
    assert {each.requests for each in found.chunks} == {1, 2}
    costs = {one.arm.partition(":")[0]: one for one in results.updates}
    assert all(one.steps > 0 and one.step_ms > 0 and one.traces >= 20 for one in costs.values())
    assert all(costs[kind].rejected == 0 < costs[kind].published for kind in costs if kind != "lora")
    assert costs["lora"].published + costs["lora"].rejected == costs["lora"].steps // 2
    assert costs["lora"].trained_parameters < costs["full-parameter"].trained_parameters / 2
    assert 0 < costs["lora"].held_mb < costs["full-parameter"].held_mb
    assert costs["lora"].peak_mb < costs["full-parameter+full-loss"].peak_mb
    last = {each.arm: each.adapter_version for each in found.chunks}
    assert last.pop("none") == 0
    assert all(last[one.arm] > 0 for one in costs.values() if one.published > 1)
    report = (tmp_path / "report.md").read_text()
    for plot in ("along.png", "held_out.png", "updates.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
        assert f"({plot})" in report
    assert "law (return)" in report


@pytest.mark.parametrize("way", ["lora", "full-parameter:publish_rank=4:positions=all:blend=0.5"])
def test_an_adapter_for_each_kind_of_traffic_is_an_arm(
    way: str, settings: AlignStreamSettings, tmp_path: Path
) -> None:
    arm = f"{way}:adapters=2:gated=no{SMALL}"
    results = run_align_stream(replace(settings, arms=(arm,)), tmp_path)
    assert results.alignment is not None
    assert results.alignment.failures == ()
    assert {each.same_output for each in results.alignment.chunks} == {1.0}
    (costs,) = results.updates
    assert costs.published > 0


def test_without_time_the_stream_ends_early_and_held_out_prompts_are_decoded_all_the_same(
    settings: AlignStreamSettings, tmp_path: Path
) -> None:
    results = run_align_stream(replace(settings, arms=("none",), minutes=1e-6), tmp_path)
    assert results.alignment is not None
    assert (results.alignment.requests, results.alignment.planned) == (2, 20)
    assert len(results.runs) == 3


def test_an_arm_that_fails_is_given_up_and_the_others_go_on(
    settings: AlignStreamSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: AlignmentTrainer, trace: object) -> None:
        raise WireError("no room\nat all")

    monkeypatch.setattr(AlignmentTrainer, "add", add)
    results = run_align_stream(replace(settings, arms=("lora" + SMALL,)), tmp_path)
    assert results.alignment is not None
    (failure,) = results.alignment.failures
    assert (failure.place, failure.problem) == (2, "no room")
    assert {run.name for run in results.runs} == {"none"}
    assert "FAILED: lora" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"topics": ("law", "tax")},
            "no prompts of topic 'tax' and split 'adapt': there are law, code, general",
        ),
        ({"topics": ("law", "law")}, "a topic is named twice"),
    ],
)
def test_topics_that_cannot_stream_are_told(
    settings: AlignStreamSettings, tmp_path: Path, changes: dict[str, tuple[str, ...]], problem: str
) -> None:
    with pytest.raises((PromptFileError, ArmError), match=problem):
        run_align_stream(replace(settings, **changes), tmp_path)


def test_the_command_takes_arms(folders: TinyFolders, prompt_file: Path, tmp_path: Path) -> None:
    options = f"--arms none --target {folders.target} --drafter {folders.drafter} --topics law --every 2"
    sizes = "--rounds 1 --eval-limit 1 --max-tokens 4 --capacity 128 --core 32 --device cpu --dtype float32"
    command = ["stream", "--prompts", str(prompt_file), "--out", str(tmp_path), *f"{options} {sizes}".split()]
    done = CliRunner().invoke(bench, [*command, "--json"])
    assert done.exit_code == 0
    assert Results.model_validate_json(done.stdout).alignment is not None
