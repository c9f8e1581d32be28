"""`evospec plan`: for people, for programs, and on bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.plan import figures


def run(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *options], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_people_see_what_it_takes_and_every_assumption() -> None:
    code, output = run("--requests-per-s", "40")
    assert code == 0
    for part in ("replicas", "MB/s", "updates/s", "look-ups", "first limit", "1,000"):
        assert part in output
    for figure in figures.EVERY:
        assert figure.meaning.split(",")[0][:40] in output


def test_programs_get_all_of_it() -> None:
    code, output = run("--tokens-per-s", "20000", "--answer-tokens", "100", "--gpu", "a100", "--json")
    made = json.loads(output)
    assert code == 0
    assert made["decoding"]["tokens_per_s"] == pytest.approx(20_000)
    assert made["question"]["load"]["requests_per_s"] == pytest.approx(200)
    assert len(made["scale"]) == 4
    assert len(made["assumptions"]) > len(figures.EVERY)


def test_what_does_not_fit_is_an_exit_code() -> None:
    assert run("--requests-per-s", "5000", "--gpus", "3", "--json")[0] == 1


def test_settings_come_from_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("alignment: {enabled: false}\nsemantic: {refresh_tokens: 10}\n")
    made = json.loads(run("--requests-per-s", "1", "--config", str(file), "--json")[1])
    assert made["traces"]["mb_s"] == 0
    assert made["index"]["lookups_per_s"] == 21


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "give the load as"),
        (("--requests-per-s", "1", "--tokens-per-s", "1"), "give the load as"),
        (("--requests-per-s", "-1"), "requests_per_s is -1"),
        (("--tokens-per-s", "10", "--answer-tokens", "0"), "answer_tokens is 0"),
        (("--requests-per-s", "1", "--gpu", "abacus"), "unknown GPU 'abacus'"),
        (("--requests-per-s", "1", "--model", "abacus"), "no sizes of 'abacus'"),
        (("--requests-per-s", "1", "--gpus", "0"), "at least one GPU"),
        (("--requests-per-s", "1", "--network", "0"), "network_gbit is 0"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], told: str) -> None:
    code, output = run(*options)
    assert code == 2
    assert told in output
    assert output.startswith("error: ")
    assert output.count("\n") == 1
