"""The library's command line: what it prints, and how bad input is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from evospec import __version__
from evospec.bench import command
from evospec.bench.results import Results
from evospec.bench.settings import DecodeSettings
from evospec.cli import app
from tests.tiny import TinyFolders, tiny_folders
from tests.unit.bench_kit import results_of, run_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=typed)


def generate(folders: TinyFolders, *arguments: str, typed: str | None = None) -> Result:
    models = ("--target", str(folders.target), "--drafter", str(folders.drafter))
    return run("generate", *models, "--device", "cpu", "--dtype", "float32", *arguments, typed=typed)


def assert_one_line(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generte",), "No such command 'generte'"),
        (("generate", "--speed", "9"), "No such option: --speed"),
        (("generate", "--max-tokens", "0", "--prompt", "x"), "--max-tokens"),
        (("generate", "--dtype", "int8", "--prompt", "x"), "'float32'"),
        (("generate",), "give either --prompt TEXT or --prompt-file FILE"),
        (("generate", "--prompt", "x", "--prompt-file", "y"), "give either --prompt"),
        (("generate", "--prompt-file", "missing.txt"), "cannot read prompt file missing.txt"),
        (("generate", "--prompt", "x", "--policy", "fastest"), "unknown vocabulary policy 'fastest'"),
        (("generate", "--prompt", "x", "--target", "no-such-model"), "no model 'no-such-model'"),
        (("bench", "decode", "--out", "o"), "Missing option '--prompts'"),
        (("bench", "decode", "--prompts", "missing.jsonl", "--out", "o"), "cannot read prompt file"),
        (("bench", "decode", "--prompts", "p", "--out", "o", "--core", "9999"), "core (9999) may fill"),
        (("train", "--minutes", "soon"), "--minutes"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(*arguments), message)


def test_a_missing_or_foreign_drafter_is_told(folders: TinyFolders, tmp_path: Path) -> None:
    other = tiny_folders(tmp_path, seed=7)
    target = ("--target", str(folders.target), "--prompt", "x")
    assert_one_line(run("generate", *target, "--drafter", "nowhere"), "no drafter at 'nowhere'")
    assert_one_line(run("generate", *target), "no drafter ships for target")
    assert_one_line(run("generate", *target, "--drafter", str(other.drafter)), "was made for")


def test_a_prompt_beyond_the_context_is_told(folders: TinyFolders) -> None:
    assert_one_line(generate(folders, "--prompt", "x" * 600), "exceed the limit of 512 tokens")


def test_text_goes_to_stdout_and_statistics_to_stderr(folders: TinyFolders) -> None:
    result = generate(folders, "--prompt", "hello", "--max-tokens", "12")
    assert result.exit_code == 0
    assert result.stdout.strip()
    assert result.stderr.startswith("12 tokens in ")
    assert "acceptance length" in result.stderr


def test_policies_agree_on_the_tokens(folders: TinyFolders) -> None:
    answers = []
    for policy in ("plain", "full", "fr-spec:64", "evospec"):
        result = generate(folders, "--prompt", "hello", "--max-tokens", "16", "--policy", policy, "--json")
        answers.append(json.loads(result.stdout))
    assert len({tuple(answer["token_ids"]) for answer in answers}) == 1
    assert [answer["active_rows"] for answer in answers] == [0, 260, 68, 260]
    assert answers[0]["finish_reason"] == "length"
    assert answers[0]["tokens"] == 16


def test_the_text_that_is_streamed_is_the_text_of_json(folders: TinyFolders) -> None:
    asked = ("--prompt", "hello", "--max-tokens", "24", "--temperature", "1", "--seed", "3", "--no-chat")
    streamed = generate(folders, *asked).stdout_bytes.decode()
    answer = json.loads(generate(folders, *asked, "--json").stdout)
    assert streamed == answer["text"] + "\n"
    assert answer["prompt_tokens"] == 5  # bytes: no template around it


def test_prompts_come_from_files_and_standard_input(folders: TinyFolders, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hello")
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello", "id": "a"}\n{"prompt": "bye", "id": "b"}\n')
    short = ("--max-tokens", "4", "--json")
    from_text = generate(folders, "--prompt-file", str(tmp_path / "p.txt"), *short)
    from_stdin = generate(folders, "--prompt-file", "-", *short, typed="hello")
    from_lines = generate(folders, "--prompt-file", str(tmp_path / "p.jsonl"), *short)
    lines = [json.loads(line) for line in from_lines.stdout.splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    for result in (from_text, from_stdin):
        assert json.loads(result.stdout)["token_ids"] == lines[0]["token_ids"]


def test_models_are_listed() -> None:
    listing = json.loads(run("models", "--json").stdout)
    assert "smollm2-135m" in {model["name"] for model in listing["models"]}
    assert "smollm2-135m" in {drafter["target"] for drafter in listing["drafters"]}
    shown = run("models").stdout
    assert "smollm2-135m" in shown
    assert "Apache-2.0" in shown


def test_the_bench_takes_files_and_options_and_fails_when_a_policy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[DecodeSettings] = []
    outcome = [results_of(run_of("plain", "law")), results_of(run_of("full", "law", status="failed"))]

    def fake(settings: DecodeSettings, out: Path) -> Results:
        given.append(settings)
        return outcome[len(given) - 1]

    monkeypatch.setattr(command, "run_decode", fake)
    asked = ("bench", "decode", "--out", str(tmp_path), "--prompts", "a.jsonl", "b.jsonl", "--batch", "3")
    good = run(*asked, "--policies", "full, fr-spec:9", "--no-chat", "--json")
    assert good.exit_code == 0
    assert Results.model_validate_json(good.stdout) == outcome[0]
    assert given[0].prompts == (Path("a.jsonl"), Path("b.jsonl"))
    assert given[0].policies == ("full", "fr-spec:9")
    assert (given[0].batch, given[0].chat) == (3, False)
    assert run(*asked).exit_code == 1


@pytest.mark.parametrize(
    "arguments", [(), ("generate",), ("models",), ("bench",), ("bench", "decode"), ("train",)]
)
def test_every_command_has_help(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_a_group_without_a_command_shows_its_help() -> None:
    result = run("bench")
    assert result.exit_code == 2
    assert "decode" in result.output
    assert "error:" not in result.output


def test_the_version_is_shown() -> None:
    assert run("--version").stdout == f"evospec {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, evospec.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'ray'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evospec", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: No such command 'nothing'.\n"
