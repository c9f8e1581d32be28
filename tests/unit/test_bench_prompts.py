"""Prompt files: what is kept, and how bad ones are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evospec.bench.prompts import PromptFileError, read_prompts


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_rows_are_filtered_by_split_and_limited_per_domain(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{domain} {number} {split}", "domain": domain, "split": split, "licence": "x"}
        for number in range(3)
        for domain in ("law", "code")
        for split in ("adapt", "eval")
    ]
    file = write(tmp_path / "mixed.jsonl", *rows)
    kept = read_prompts([file], split="eval", limit=2)
    assert [prompt.text for prompt in kept] == ["law 0 eval", "law 1 eval", "code 0 eval", "code 1 eval"]


def test_domain_and_id_come_from_the_file_where_a_row_has_none(tmp_path: Path) -> None:
    file = write(tmp_path / "biology.jsonl", {"prompt": "a"}, "", {"prompt": "b", "id": "x", "domain": "y"})
    first, second = read_prompts([file])
    assert (first.domain, first.id) == ("biology", "biology/1")
    assert (second.domain, second.id) == ("y", "x")


def test_a_line_separator_inside_a_prompt_does_not_end_the_row(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert [prompt.text for prompt in read_prompts([tmp_path / "p.jsonl"])] == ["a\u2028b"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{not json", "Invalid JSON"),
        ('{"text": "a"}', "`prompt`: Field required"),
        ('{"prompt": ""}', "`prompt`: String should have at least 1 character"),
        ('{"prompt": 7}', "`prompt`: Input should be a valid string"),
        ("[1]", "Input should be an object"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(tmp_path: Path, row: str, problem: str) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(PromptFileError) as told:
        read_prompts([file])
    message = str(told.value)
    assert message.startswith(f"{file}, line 2: ")
    assert problem in message
    assert "\n" not in message


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "a", "split": "adapt"}, {"prompt": "b"})
    with pytest.raises(PromptFileError, match=r"split 'eval' in .*: the splits there are adapt, none"):
        read_prompts([file], split="eval")


def test_an_empty_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="each line must be a JSON object"):
        read_prompts([write(tmp_path / "p.jsonl")])
    with pytest.raises(PromptFileError, match="cannot read prompt file"):
        read_prompts([tmp_path / "missing.jsonl"])
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptFileError, match="not a text file"):
        read_prompts([tmp_path / "b.jsonl"])
