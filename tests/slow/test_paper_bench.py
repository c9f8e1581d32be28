"""The paper bench in parts: it goes on where it stopped, refuses what changed, and tells what broke."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from evospec.bench.paper import report
from evospec.bench.paper import run as paper_run
from evospec.bench.paper.clock import CallClock, OutOfTimeError
from evospec.bench.paper.decoding import affordable
from evospec.bench.paper.parts import Part, all_parts, chosen_parts
from evospec.bench.paper.run import Call, run_paper
from evospec.bench.paper.settings import PaperSettings
from evospec.bench.paper.state import PaperStateError
from evospec.bench.paper.work import Work
from evospec.bench.results import Results
from evospec.cli import app
from evospec.errors import EvoSpecError
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.bench_kit import batch_of, results_of, run_of

NAMES = ("learn", "headline", "stream")


@dataclass(slots=True)
class FakeTime:
    """Parts move its hands."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(slots=True)
class FakeParts:
    """Each part takes two minutes of ten seconds' turns; some break."""

    time: FakeTime = field(default_factory=FakeTime)
    broken: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)

    def all(self, work: Work) -> list[Part]:
        return [Part(name, f"the {name} part", 100.0, self._runner(name)) for name in NAMES]

    def _runner(self, name: str) -> Callable[[Work], Results]:
        def run(work: Work) -> Results:
            self.begun.append(name)
            if name in self.broken:
                raise RuntimeError("the device\ngave up")
            for turn in range(12):
                work.clock.check(turn / 12)
                self.time.seconds += 10.0
            found = results_of(run_of("plain", "law"), run_of("evospec", "law", drafting="chain"))
            return found.model_copy(update={"settings": {**found.settings, "learned": name}})

        return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"{split} {topic}", "domain": topic, "split": split}
        for topic in ("law", "code")
        for split in ("adapt", "eval")
    ]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def settings(folders: TinyFolders, prompts: Path) -> PaperSettings:
    return PaperSettings(
        str(folders.target), (prompts,), drafter=str(folders.drafter), device="cpu", dtype="float32"
    )


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> FakeParts:
    fake = FakeParts()
    monkeypatch.setattr(paper_run, "all_parts", fake.all)
    monkeypatch.setattr(report, "write_paper_plots", lambda *_: [])
    return fake


def call(
    settings: PaperSettings, out: Path, parts: FakeParts, minutes: float | None = None, **how: bool
) -> paper_run.Outcome:
    return run_paper(settings, out, Call(minutes, **how), CallClock(minutes, parts.time))


def measured(folder: Path) -> tuple[object, str]:
    """What was measured, and the report."""
    results = Results.read(folder / "results.json")
    return (results.runs, results.turns, results.settings), (folder / "report.md").read_text()


@pytest.mark.parametrize("minutes", [2.5, 4.7, 6.5])
def test_a_run_in_several_calls_gives_the_report_of_one(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path, minutes: float
) -> None:
    whole = call(settings, tmp_path / "whole", parts)
    assert (whole.left, whole.broken) == ((), ())
    for _ in NAMES:
        outcome = call(settings, tmp_path / "parts", parts, minutes)
        if not outcome.left:
            break
    assert outcome.left == ()
    assert parts.begun == [*NAMES, *NAMES]  # none twice
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")


def test_a_part_that_was_cut_off_leaves_nothing_and_is_done_again(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    call(settings, whole, parts)
    parts.begun.clear()
    first = call(settings, tmp_path / "parts", parts, minutes=1.0)
    assert first.results is None
    assert first.left == NAMES
    second = call(settings, tmp_path / "parts", parts, minutes=3.0)
    assert second.left == NAMES[1:]
    third = call(settings, tmp_path / "parts", parts)
    assert third.left == ()
    assert parts.begun == ["learn", *NAMES]
    assert measured(tmp_path / "parts") == measured(whole)


def test_an_interruption_in_a_part_keeps_those_before(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(clock: CallClock, share: float) -> None:
        if parts.begun[-1] == "headline" and share > 0.5:
            raise KeyboardInterrupt

    call(settings, tmp_path / "whole", parts)
    with monkeypatch.context() as patched:
        patched.setattr(CallClock, "check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(settings, tmp_path / "parts", parts)
    parts.begun.clear()
    assert call(settings, tmp_path / "parts", parts).left == ()
    assert parts.begun == ["headline", "stream"]
    assert not list((tmp_path / "parts").rglob("*.partial"))
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")


def test_parts_that_do_not_fit_are_left_and_smaller_ones_are_not_waited_for(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path
) -> None:
    outcome = call(settings, tmp_path, parts, minutes=4.0)  # the second would end after 240 of 220 seconds
    assert outcome.left == ("headline", "stream")
    assert parts.begun == ["learn"]


def test_a_part_that_breaks_is_told_and_others_go_on(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.broken = {"headline"}
    outcome = call(settings, tmp_path, parts)
    assert (outcome.left, outcome.broken) == (("headline",), ("headline",))
    assert "headline failed: the device gave up" in capsys.readouterr().err
    parts.broken = set()
    assert call(settings, tmp_path, parts).broken == ()


@pytest.mark.parametrize(("changes", "named"), [({"limit": 3}, "settings"), ({"seed": 1}, "settings")])
def test_a_folder_of_another_run_is_refused(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path, changes: dict[str, int], named: str
) -> None:
    call(settings, tmp_path, parts, minutes=2.5)
    other = replace(settings, **changes)  # type: ignore[arg-type]
    with pytest.raises(PaperStateError, match=f"was begun with other {named}: choose another --out"):
        call(other, tmp_path, parts)
    assert call(other, tmp_path, parts, mixed=True).left == ()
    assert parts.begun == list(NAMES)
    assert call(replace(settings, limit=5), tmp_path, parts, restart=True).left == ()
    assert parts.begun == [*NAMES, *NAMES]


def test_other_code_and_machines_are_refused(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(settings, tmp_path, parts, minutes=2.5)
    state = json.loads((tmp_path / "paper.json").read_text())
    state["fingerprint"] |= {"code": "another", "machine": "another"}
    (tmp_path / "paper.json").write_text(json.dumps(state))
    with pytest.raises(PaperStateError, match="with other code and machine"):
        call(settings, tmp_path, parts)


def test_prompts_count_by_what_is_in_them(
    settings: PaperSettings, parts: FakeParts, tmp_path: Path, prompts: Path
) -> None:
    file = tmp_path / prompts.name
    file.write_text(prompts.read_text())
    call(replace(settings, prompts=(file,)), tmp_path / "out", parts, minutes=2.5)
    file.write_text(prompts.read_text().replace("eval law", "eval tax"))
    with pytest.raises(PaperStateError, match="with other settings"):
        call(replace(settings, prompts=(file,)), tmp_path / "out", parts)


def test_the_clock_stops_before_the_time_is_up() -> None:
    time = FakeTime()
    clock = CallClock(2.0, time)
    time.seconds = 90.0
    clock.check(0.4)
    time.seconds = 105.0
    with pytest.raises(OutOfTimeError) as stopped:
        clock.check(0.5)
    assert stopped.value.share == 0.5
    CallClock(None, time).check(0.5)


@dataclass(slots=True)
class _Bench:
    """What `affordable` looks at of a bench."""

    batches: list[object]
    settings: PaperSettings


@pytest.mark.parametrize(("left", "each"), [(float("inf"), 4), (1000.0, 4), (100.0, 3), (70.0, 2), (0.0, 1)])
def test_short_time_takes_as_many_prompts_of_each_domain(left: float, each: int) -> None:
    batches = [batch_of(number, domain) for number, domain in enumerate(["law"] * 4 + ["code"] * 4)]
    bench = _Bench(list(batches), PaperSettings("tiny", ()))
    bench.settings = PaperSettings("tiny", ()).decode(())  # type: ignore[assignment]
    kept = affordable(bench, left, seconds=10.0)  # type: ignore[arg-type]
    assert [batch.domain for batch in kept] == ["law"] * each + ["code"] * each
    assert kept[0] is batches[0]


def test_parts_are_chosen_by_how_they_begin(settings: PaperSettings, tmp_path: Path) -> None:
    work = Work(settings, tmp_path, CallClock(), paper_run.Console())
    listed = all_parts(work)
    names = [part.name for part in listed]
    assert names[:3] == ["learn", "headline", "stream"]
    assert "memory" not in names  # a folder has no shapes that `bench memory` knows
    assert [part.name for part in chosen_parts(listed, ["batch", "trees"])] == [
        "batch-8",
        "batch-32",
        "trees",
    ]
    with pytest.raises(EvoSpecError, match="unknown part 'stram': choose some of learn, headline"):
        chosen_parts(listed, ["stram"])


def paper(*arguments: str) -> Result:
    return CliRunner().invoke(app, ("bench", "paper", *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "no-such-model"), "no model 'no-such-model'"),
        (("--prompts", "nowhere.jsonl"), "cannot read prompt file nowhere.jsonl"),
        (("--parts", "dessert"), "unknown part 'dessert'"),
        (("--shapes", "gpt-5"), "unknown shapes 'gpt-5'"),
        (("--batch", "8,many"), "batch '8,many'"),
        (("--align", "telepathy"), "unknown arm 'telepathy'"),
        (("--minutes", "0"), "--minutes"),
    ],
)
def test_bad_input_is_one_line(
    folders: TinyFolders, prompts: Path, tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    usual = {
        "--target": str(folders.target),
        "--drafter": str(folders.drafter),
        "--prompts": str(prompts),
        "--out": str(tmp_path / "out"),
        "--device": "cpu",
        "--shapes": "tiny",  # what is not refused must end
    }
    given = [word for pair in (usual | {arguments[0]: arguments[1]}).items() for word in pair]
    done = paper(*given)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_without_prompts_or_a_folder_to_write_to_nothing_begins(
    folders: TinyFolders, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = paper("--out", str(tmp_path / "out"))
    assert (nothing.exit_code, len(nothing.stderr.splitlines())) == (2, 1)
    assert "name files with --prompts" in nothing.stderr
    (tmp_path / "file").write_text("")
    models = ("--target", str(folders.target), "--drafter", str(folders.drafter))
    closed = paper(*models, "--prompts", str(prompts), "--out", str(tmp_path / "file" / "out"))
    assert (closed.exit_code, len(closed.stderr.splitlines())) == (2, 1)
    assert "cannot write into" in closed.stderr


def test_reports_and_comparisons_need_finished_parts(tmp_path: Path) -> None:
    for command in (("paper-report", str(tmp_path)), ("paper-diff", str(tmp_path), str(tmp_path))):
        done = CliRunner().invoke(app, ("bench", *command))
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
