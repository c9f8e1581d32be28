"""`evospec vocab inspect` shows what is active, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from evospec.cli import app
from tests.tiny import TinyFolders, tiny_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TinyFolders:
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


def inspect(folders: TinyFolders, *arguments: str) -> Result:
    models = ("--target", str(folders.target), "--drafter", str(folders.drafter))
    fixed = ("--device", "cpu", "--dtype", "float32", "--max-tokens", "8")
    return CliRunner().invoke(app, ("vocab", "inspect", *models, *fixed, *arguments))


def test_json_holds_every_active_token_and_why(folders: TinyFolders, tmp_path: Path) -> None:
    warm = tmp_path / "warm.jsonl"
    warm.write_text('{"prompt": "xyz"}\n', encoding="utf-8")
    result = inspect(folders, "--prompt", "abc", "--policy", "nanospec", "--warm", str(warm), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["active"] == len(report["tokens"]) == sum(report["by_source"].values())
    found = {token["text"]: token for token in report["tokens"]}
    for letter in "abc":
        assert found[letter]["source"] == "context"
        assert found[letter]["score"] > 0
    assert found["<|end|>"] | {"id": 0} == {
        "id": 0,
        "text": "<|end|>",
        "source": "core",
        "score": None,
        "pins": 1,
    }
    assert "draft" in report["by_source"]
    assert 0 <= report["covered"] <= 1


def test_the_table_groups_tokens_by_source(folders: TinyFolders) -> None:
    result = inspect(folders, "--prompt", "abc", "--limit", "2")
    assert result.exit_code == 0, result.output
    assert "rows active" in result.stdout
    assert "core:" in result.stdout
    assert "always" in result.stdout


def test_a_vocabulary_that_never_changes_is_refused(folders: TinyFolders) -> None:
    result = inspect(folders, "--prompt", "abc", "--policy", "full")
    assert result.exit_code == 2
    assert "inspect a dynamic policy" in result.stderr
