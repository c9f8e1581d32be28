"""Result files: written, read back, refused when they are something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.results import Results, shown_name
from evospec.errors import EvoSpecError
from tests.unit.bench_kit import results_of, run_of

SCHEMA_KEYS = {
    *("target", "drafter", "policy", "arm", "domain", "batch", "tokens", "cycles", "tokens_per_s"),
    *("acceptance_length", "acceptance_by_position", "active_rows", "coverage", "draft_ms", "verify_ms"),
    *("peak_memory_mb", "identical_to_plain"),
}


def test_a_result_file_round_trips(tmp_path: Path) -> None:
    results = results_of(run_of("plain", "law"), run_of("evospec", "law", identical_to_plain=None))
    assert Results.read(results.write(tmp_path)) == results


def test_the_file_has_the_documented_keys(tmp_path: Path) -> None:
    content = json.loads(results_of(run_of("full", "code")).write(tmp_path).read_text())
    measured = {"runs", "arms", "stream", "alignment", "updates", "turns"}
    assert content.keys() == {"schema", "machine", "git", "settings", *measured}
    assert content["schema"] == 1
    assert content["runs"][0].keys() >= SCHEMA_KEYS


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 2}, "has schema 2"), ({"runs": [{}]}, "runs.0"), ({"more": 1}, "more")],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = results_of(run_of("plain", "law")).write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EvoSpecError, match=message):
        Results.read(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvoSpecError, match="cannot read"):
        Results.read(tmp_path / "results.json")


def test_the_machine_is_described_without_naming_it() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.memory_gb > 0
    assert "/" not in machine.cpu
    assert git_commit()


def test_a_model_folder_is_shown_by_its_name(tmp_path: Path) -> None:
    assert shown_name(str(tmp_path)) == tmp_path.name
    assert shown_name("owner/model") == "owner/model"
