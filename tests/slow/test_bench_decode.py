"""The decode bench on tiny models, from prompt file to result files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from evospec.bench.command import run_decode
from evospec.bench.decode import DecodeBench
from evospec.bench.measure import EngineArm
from evospec.bench.plots import write_plots
from evospec.bench.report import render
from evospec.bench.results import Results
from evospec.bench.settings import DecodeSettings, vocabulary
from evospec.config import VocabularyConfig
from evospec.engine.engine import Engine
from evospec.engine.request import Request, StepOutput
from evospec.engine.stats import EngineStats
from evospec.errors import EvoSpecError
from tests.tiny import TinyFolders, tiny_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def settings(folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> DecodeSettings:
    rows = [("law", "a contract"), ("law", "a tort"), ("law", "a deed"), ("code", "a loop")]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"domain": domain, "prompt": text}) for domain, text in rows))
    return DecodeSettings(
        target=str(folders.target),
        drafter=str(folders.drafter),
        prompts=(file,),
        policies=("full", "fr-spec:64", "evospec", "evospec@tree:3x2x5", "transformers"),
        drafting="chain",
        device="cpu",
        dtype="float32",
        batch=2,
        max_tokens=12,
        vocabulary=VocabularyConfig(capacity=128, core=32),
    )


@pytest.fixture(scope="module")
def out(settings: DecodeSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files of one run of all policies."""
    folder = tmp_path_factory.mktemp("bench") / "new" / "folder"
    run_decode(settings, folder)
    return folder


def measure(settings: DecodeSettings) -> Results:
    """Results without warm-up and files."""
    bench = DecodeBench.load(settings)
    return bench.results(list(bench.turns()))


def test_all_arms_give_plain_decodings_output(out: Path) -> None:
    results = Results.read(out / "results.json")
    assert [(run.domain, run.name) for run in results.runs] == [
        (domain, name)
        for domain in ("law", "code")
        for name in (
            *("plain", "full", "fr-spec:64", "evospec"),
            *("evospec@tree:3x2x5", "transformers"),
        )
    ]
    for run in results.runs:
        assert run.identical_to_plain
        assert run.status == "ok"
        assert run.tokens_per_s > 0
        assert run.prompts == (3 if run.domain == "law" else 1)
    by_name = {run.name: run for run in results.runs if run.domain == "law"}
    assert by_name["full"].active_rows == 260
    assert by_name["fr-spec:64"].active_rows == 64 + 4  # and the special tokens
    assert 32 < by_name["evospec"].active_rows <= 128
    assert by_name["plain"].acceptance_by_position == ()


def test_arms_tell_how_they_drafted(out: Path) -> None:
    by_name = {run.name: run for run in Results.read(out / "results.json").runs}
    assert by_name["evospec"].plan_shares == {"chain-5": 1.0}
    tree = by_name["evospec@tree:3x2x5"]
    assert (tree.policy, tree.drafting, tree.plan_shares) == ("evospec", "tree:3x2x5", {"tree-3x2-5": 1.0})
    assert len(tree.acceptance_by_position) <= 3
    assert by_name["plain"].plan_shares == {"plain": 1.0}
    peer = by_name["transformers"]
    assert (peer.drafter, peer.drafting, peer.plan_shares, peer.tokens_per_cycle) == (None, None, {}, 1.0)


def test_cycles_are_broken_down_and_bounded(out: Path) -> None:
    results = Results.read(out / "results.json")
    assert results.machine.copy_gb_per_s is not None
    for run in results.runs:
        assert run.cycle_ms is not None
        assert run.predicted_speedup is not None
        assert run.ttft_ms is not None
        assert run.device_seconds is None
        if run.name == "transformers":
            assert run.breakdown is None
            assert run.roofline_ms is None
            continue
        assert run.breakdown is not None
        assert run.breakdown.target_layers_ms > 0
        assert run.breakdown.cycle_ms > 0
        assert (run.head_us is not None) == (run.name != "plain")
        assert (run.breakdown.draft_head_ms > 0) == (run.name != "plain")
        assert run.roofline_ms is not None
        assert run.roofline_share == pytest.approx(run.roofline_ms / run.cycle_ms)
    shares = {run.name: run.share_of_full for run in results.runs if run.domain == "law"}
    assert shares["full"] == 1.0
    assert shares["evospec"] is not None
    assert shares["evospec@tree:3x2x5"] is None  # no arm drafts such trees over all rows
    assert shares["plain"] is shares["transformers"] is None
    costs = {arm.name: arm for arm in results.arms}
    assert set(costs) == {"plain", "full", "fr-spec:64", "evospec", "evospec@tree:3x2x5"}
    assert costs["plain"].upkeep is None
    assert costs["full"].upkeep is not None
    assert costs["full"].memory is None
    by_name = {run.name: run.roofline_ms or 0.0 for run in results.runs if run.domain == "law"}
    assert by_name["plain"] < by_name["fr-spec:64"] < by_name["full"]


def test_several_batch_sizes_share_models_and_report(settings: DecodeSettings, tmp_path: Path) -> None:
    asked = replace(settings, batch=1, more_batches=(3,), policies=("evospec",), profile=False)
    run_decode(asked, tmp_path)
    results = Results.read(tmp_path / "results.json")
    assert results.batches == [1, 3]
    assert results.settings["batch"] == [1, 3]
    assert [(run.batch, run.domain, run.name) for run in results.runs] == [
        (batch, domain, name)
        for batch in (1, 3)
        for domain in ("law", "code")
        for name in ("plain", "evospec")
    ]
    assert [(arm.batch, arm.name) for arm in results.arms] == [
        (batch, name) for batch in (1, 3) for name in ("plain", "evospec")
    ]
    for run in results.runs:
        assert run.slowest_request is not None
        assert run.captures == 0
    report = (tmp_path / "report.md").read_text()
    assert "## law, batch 3" in report
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "speed-batch-3.png").is_file()


def test_auto_drafting_is_what_arms_do_by_default(settings: DecodeSettings) -> None:
    results = measure(replace(settings, drafting="auto", policies=("full",)))
    (full,) = [run for run in results.runs if run.name == "full" and run.domain == "law"]
    assert full.drafting == "auto"
    assert len(full.plan_shares) > 1
    assert sum(full.plan_shares.values()) == pytest.approx(1.0)
    assert full.breakdown is None  # neither warmed up nor profiled
    assert full.roofline_ms is None


def test_results_name_no_folder(out: Path, settings: DecodeSettings) -> None:
    for file in ("results.json", "report.md"):
        content = (out / file).read_text()
        assert str(Path(settings.target).parent) not in content
        assert str(settings.prompts[0].parent) not in content
    results = Results.read(out / "results.json")
    assert results.settings["prompts"] == ["prompts.jsonl"]
    assert results.runs[0].target == "target"


def test_plots_are_written_and_shown_in_the_report(out: Path) -> None:
    report = (out / "report.md").read_text()
    plots = sorted(out.glob("*.png"))
    assert [plot.name for plot in plots] == [
        "acceptance_by_position.png",
        "cycle.png",
        "speed.png",
        "tokens_per_cycle.png",
    ]
    for plot in plots:
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert f"({plot.name})" in report


@dataclass(slots=True)
class CorruptingEngine:
    """Changes one token of what the engine emits for one request."""

    inner: Engine
    victim: str
    spoilt: bool = False

    @property
    def stats(self) -> EngineStats:
        return self.inner.stats

    @property
    def has_requests(self) -> bool:
        return self.inner.has_requests

    @property
    def has_work(self) -> bool:
        return self.inner.has_work

    @property
    def captures(self) -> int:
        return self.inner.captures

    def admit(self, request: Request) -> None:
        self.inner.admit(request)

    def step(self) -> list[StepOutput]:
        return [self._spoil(output) for output in self.inner.step()]

    def _spoil(self, output: StepOutput) -> StepOutput:
        if self.spoilt or output.request_id != self.victim or not output.tokens:
            return output
        self.spoilt = True
        return replace(output, tokens=((output.tokens[0] + 1) % 256, *output.tokens[1:]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_that_corrupts_a_token_is_reported_as_failed(
    settings: DecodeSettings, dtype: Literal["float32", "bfloat16"], tmp_path: Path
) -> None:
    bench = DecodeBench.load(replace(settings, dtype=dtype, policies=("full", "evospec")))
    evospec = bench.arms[-1]
    assert isinstance(evospec, EngineArm)
    assert isinstance(evospec.engine, Engine)
    bench.arms[-1] = replace(evospec, engine=CorruptingEngine(evospec.engine, victim="1:prompts/2"))
    results = bench.results(list(bench.turns()))
    assert {(run.name, run.domain) for run in results.failures} == {("evospec", "law"), ("evospec", "code")}
    for run in results.failures:
        assert run.tokens_per_s == 0.0
        assert run.speedup is None
        assert run.identical_to_plain is (run.domain == "code")
    report = render(results, [])
    assert "**evospec FAILED**: 1:prompts/2: output token 0 is " in report
    assert "| evospec | FAILED |" in report
    assert write_plots(results, tmp_path)


def test_bfloat16_differs_by_near_ties_at_most(settings: DecodeSettings) -> None:
    results = measure(replace(settings, dtype="bfloat16", policies=("full",)))
    assert not results.failures
    assert results.settings["dtype"] == "bfloat16"


def test_sampling_is_not_compared(settings: DecodeSettings) -> None:
    results = measure(replace(settings, temperature=0.8, policies=("evospec",)))
    assert {run.identical_to_plain for run in results.runs} == {None}


def test_engines_and_their_index_keep_what_they_learn(settings: DecodeSettings) -> None:
    bench = DecodeBench.load(replace(settings, policies=("evospec",)))
    bench.warm_up()
    evospec = bench.arms[-1]
    assert isinstance(evospec, EngineArm)
    epochs, points = [], []
    for turn in bench.turns():
        if turn.arm == "evospec":
            epochs.append(turn.counters.vocabulary_epoch)
            points.append(evospec.retrieval.index.count())
    bench.profile()
    points.append(evospec.retrieval.index.count())
    assert epochs == sorted(set(epochs))
    assert points == [2, 3, 4, 4]  # a point per prompt; none from warming up and profiling


def test_prompts_that_do_not_fit_are_left_out_and_counted(settings: DecodeSettings, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in ("short", "x" * 600)))
    bench = DecodeBench.load(replace(settings, prompts=(file,)))
    assert bench.skipped == 1
    assert [len(batch.requests) for batch in bench.batches] == [1]
    with pytest.raises(EvoSpecError, match="no prompt fits the models' 512 positions"):
        DecodeBench.load(replace(settings, prompts=(file,), max_tokens=508))


@pytest.mark.parametrize(
    ("arm", "drafting", "problem"),
    [
        ("fast", "auto", "unknown vocabulary policy 'fast'"),
        ("full", "tree:4x4", "unknown drafting 'tree:4x4'"),
        ("transformers:assisted", "auto", "name one with --assistant"),
    ],
)
def test_arms_are_checked_before_anything_is_loaded(arm: str, drafting: str, problem: str) -> None:
    nothing = DecodeSettings("missing", (Path("missing.jsonl"),), policies=(arm,), drafting=drafting)
    with pytest.raises(EvoSpecError, match=problem):
        DecodeBench.load(nothing)


def test_an_assistant_drafts_for_transformers(settings: DecodeSettings) -> None:
    asked = replace(settings, batch=1, assistant=settings.target, policies=("transformers:assisted",))
    results = measure(asked)
    (_, run) = [run for run in results.runs if run.domain == "law"]
    assert run.identical_to_plain
    assert run.drafter == "target"
    assert run.tokens_per_cycle is not None
    assert run.tokens_per_cycle > 1.5


def test_a_core_that_fills_the_rows_is_told() -> None:
    with pytest.raises(EvoSpecError, match="core \\(100\\) may fill at most half of capacity \\(128\\)"):
        vocabulary(capacity=128, core=100)


def test_an_output_folder_that_is_a_file_is_told(settings: DecodeSettings, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(EvoSpecError, match="cannot write into"):
        run_decode(settings, tmp_path / "out")
