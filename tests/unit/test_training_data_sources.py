"""Sources of training data: what a path names, which columns are read, and what bad input says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evospec.errors import EvoSpecError
from evospec.training.data import read_training_data
from evospec.training.reading import ReadProgress, text_blocks
from evospec.training.records import read_conversations, read_texts
from evospec.training.sources import find_sources

QUESTION = {"prompt": "Why?", "answer": "Because."}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_all(path: Path) -> list[object]:
    records: list[object] = []
    for source in find_sources([path]):
        read = read_conversations if source.kind == "chat" else read_texts
        records += read(source, ReadProgress())
    return records


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"prompt": "Why?"}, "prompts"),
        ({"prompt": "Why?", "text": "x"}, "prompts"),
        (QUESTION, "chat"),
        ({"messages": []}, "chat"),
        ({"text": "Once."}, "text"),
    ],
)
def test_the_columns_of_a_bare_file_tell_its_kind(tmp_path, record, kind) -> None:
    (source,) = find_sources([write_lines(tmp_path / "a.jsonl", record)])
    assert source.kind == kind


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "code.py", "data.json"])
def test_any_other_file_is_text_taken_as_it_is(tmp_path, name) -> None:
    path = write(tmp_path / name, "one\r\n\ttwo\n\nthree")
    (source,) = find_sources([path])
    assert source.kind == "text"
    assert "".join(read_texts(source, ReadProgress())) == "one\r\n\ttwo\n\nthree"


def test_large_text_comes_in_blocks_of_whole_lines_and_nothing_is_lost(tmp_path) -> None:
    lines = "".join(f"line {number} with a few wörds\n" for number in range(20_000)) + "end"
    progress = ReadProgress()
    blocks = list(text_blocks(write(tmp_path / "big.txt", "\ufeff" + lines), progress))
    assert "".join(blocks) == lines
    assert len(blocks) > 5
    assert all(block.endswith("\n") for block in blocks[:-1])
    assert progress.bytes == len(lines.encode()) + 3


def test_text_without_line_breaks_is_cut_between_characters(tmp_path) -> None:
    text = "漢字" * 60_000
    blocks = list(text_blocks(write(tmp_path / "big.txt", text), ReadProgress()))
    assert "".join(blocks) == text
    assert len(blocks) > 3


def test_a_folder_is_read_recursively_without_binary_and_hidden_files(tmp_path) -> None:
    write(tmp_path / "b" / "deep.md", "deep")
    write(tmp_path / "a.py", "print(1)")
    write(tmp_path / "image.png", b"\x89PNG\0\0")
    write(tmp_path / "latin.txt", "caf\xe9".encode("latin-1"))
    write(tmp_path / "empty.py", "")
    write(tmp_path / ".git" / "config", "hidden")
    write(tmp_path / ".hidden", "hidden")
    write_lines(tmp_path / "chats.jsonl", QUESTION)
    text, chat = find_sources([tmp_path])
    assert (text.kind, [file.name for file in text.files]) == ("text", ["a.py", "deep.md"])
    assert (chat.kind, [file.name for file in chat.files]) == ("chat", ["chats.jsonl"])
    assert text.skipped + chat.skipped == 3


def test_a_folder_of_a_given_kind_leaves_other_files_out(tmp_path) -> None:
    write(tmp_path / "data" / "a.txt", "text")
    write_lines(tmp_path / "data" / "q.jsonl", {"question": "Why?"})
    listing = write(tmp_path / "mix.yaml", "- {path: data, kind: prompts, columns: {prompt: question}}")
    (source,) = find_sources([listing])
    assert ([file.name for file in source.files], source.skipped) == (["q.jsonl"], 1)


def test_a_list_of_sources_maps_columns_relative_to_itself(tmp_path) -> None:
    (tmp_path / "d").mkdir()
    write_lines(tmp_path / "d" / "qa.jsonl", {"q": "Why?", "a": "So.", "split": "train"}, {"split": "test"})
    write_lines(tmp_path / "d" / "law.jsonl", {"body": "Art. 1"})
    listing = write(
        tmp_path / "mix.yml",
        """
- path: d/qa.jsonl
  kind: chat
  columns: {prompt: q, answer: a}
  split: train
  weight: 2
- {path: d/law.jsonl, columns: {text: body}, weight: 0.5}
""",
    )
    chat, law = find_sources([listing])
    (conversation,) = read_conversations(chat, ReadProgress())
    assert conversation.messages == (
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    )
    assert (law.kind, list(read_texts(law, ReadProgress()))) == ("text", ["Art. 1"])
    assert (chat.spec.weight, law.spec.weight) == (2.0, 0.5)


def test_a_template_puts_columns_together(tmp_path) -> None:
    write_lines(tmp_path / "t.jsonl", {"question": "Why?", "context": "Rain {x}."})
    write_lines(tmp_path / "c.jsonl", {"question": "Why?", "answer": "So."})
    listing = write(
        tmp_path / "mix.yaml",
        '- {path: t.jsonl, kind: prompts, template: "{question}\\n\\n{{{context}}}"}\n'
        '- {path: c.jsonl, template: "Q: {question}"}\n',
    )
    prompts, chat = find_sources([listing])
    assert list(read_texts(prompts, ReadProgress())) == ["Why?\n\n{Rain {x}.}"]
    (conversation,) = read_conversations(chat, ReadProgress())
    assert [message["content"] for message in conversation.messages] == ["Q: Why?", "So."]


def test_prompts_are_read_once_each_and_only_of_the_split(tmp_path) -> None:
    first = write_lines(
        tmp_path / "a.jsonl",
        {"prompt": "Why is it?", "split": "train"},
        {"prompt": " why  IS it?\n", "split": "train"},
        {"prompt": "\n", "split": "train"},
        {"prompt": "Held out", "split": "eval"},
    )
    second = write_lines(tmp_path / "b.jsonl", {"prompt": "New", "split": "train"})
    data = read_training_data([first, second], split="train")
    assert data.prompts == ("Why is it?", "New")
    assert [report.records for report in data.prompt_reports] == [3, 1]
    assert data.prompt_reports[0].dropped.duplicate == 1
    assert data.prompt_reports[0].dropped.short == 1


def test_lists_of_prompts_are_weighed_by_their_number(tmp_path) -> None:
    write_lines(tmp_path / "a.jsonl", *({"prompt": f"a{number}"} for number in range(90)))
    write_lines(tmp_path / "b.jsonl", *({"prompt": f"b{number}"} for number in range(10)))
    listing = write(tmp_path / "m.yaml", "- {path: a.jsonl, weight: 3}\n- {path: b.jsonl}")
    data = read_training_data([listing])
    assert sum(prompt.startswith("a") for prompt in data.prompts) == 30
    assert sum(prompt.startswith("b") for prompt in data.prompts) == 10
    assert [report.dropped.weight for report in data.prompt_reports] == [60, 0]


def test_no_data_is_fine() -> None:
    assert read_training_data([]).prompts == ()


BAD_FILES = [
    ("a.jsonl", '{"prompt": "x"}\n{"prompt": \n', r"a\.jsonl:2: not valid JSON: .* \(column \d+\)"),
    ("a.jsonl", "[1, 2]\n", r"a\.jsonl:1: expected a JSON object, found list"),
    ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "caf\xe9"}\n', r"a\.jsonl:2: not UTF-8 .*convert the file"),
    ("a.jsonl", '{"prompt": ' + "9" * 5_000 + "}", r"a\.jsonl:1: not valid JSON: .*digits"),
    ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: "),
    ("a.jsonl", '{"question": "x", "id": 1}\n', r"a\.jsonl:1: no column .*\(there are: question, id\)"),
    ("a.jsonl", '{"prompt": "x"}\n{"query": "x"}\n', r"a\.jsonl:2: no column 'prompt' \(there are: query\)"),
    ("a.jsonl", '{"prompt": 3}\n', r"a\.jsonl:1: column 'prompt' holds int, expected a string"),
    ("a.jsonl", '{"prompt": "\\ud800"}\n', r"a\.jsonl:1: .*surrogate"),
    ("a.jsonl", '{"text": "x"}\n{"txt": "x"}\n', r"a\.jsonl:2: no column 'text' \(there are: txt\)"),
    ("a.jsonl", '{"messages": "x"}\n', r"a\.jsonl:1: column 'messages' must hold a list of messages"),
    ("a.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}\n', r"a\.jsonl:1: .*system, user"),
    ("a.jsonl", '{"messages": []}\n{"text": "x"}\n', r"a\.jsonl:2: no column 'messages'.*there are: text"),
    ("a.jsonl", "", r"a\.jsonl is empty"),
    ("a.jsonl", "\n \n", r"a\.jsonl is empty"),
    ("a.txt", b"caf\xe9 au lait", r"a\.txt: not UTF-8 at byte 3 .*convert the file"),
    ("a.txt", b"end of a character \xe2\x82", r"a\.txt: not UTF-8 at byte 19"),
    ("a.txt", b"PK\0\0", r"a\.txt is a binary file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(EvoSpecError, match=message) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)


BAD_LISTS = [
    ("- path: a.txt\n  wieght: 2\n", r"source 1: unknown key 'wieght' \(there are: path, kind, .*weight"),
    ("- path: a.txt\n- path: a.txt\n  weight: 0\n", "source 2: weight: .*greater than 0"),
    ("- {path: a.txt, weight: -1}", "source 1: weight: .*greater than 0"),
    ("- {path: a.txt, weight: .nan}", "source 1: weight: .*finite"),
    ("- {path: a.txt, weight: .inf}", "source 1: weight: .*finite"),
    ("- {path: a.txt, kind: images}", "source 1: kind: .*'prompts', 'text' or 'chat'"),
    ("- {kind: text}", "source 1: path: Field required"),
    ("- {path: a.jsonl, columns: {question: q}}", r"unknown key 'columns.question' \(there are: prompt, ans"),
    ("- {path: a.jsonl, template: 'no columns'}", "source 1: template: .*expected columns in braces"),
    ("- {path: a.jsonl, template: '{a.__class__!r}'}", "source 1: template: .*expected columns in braces"),
    ("- {path: a.jsonl, template: '{unclosed'}", "source 1: template: "),
    ("- {path: a.txt, kind: chat}", r"a\.txt: kind chat needs JSON lines"),
    ("- {path: missing.txt}", r"missing\.txt: there is no such file or folder"),
    ("- just a name", "source 1: .*dictionary"),
    ("path: a.txt", r"expected a list of sources"),
    ("", r"expected a list of sources"),
    ("- {path: [", r"mix\.yaml is not valid YAML"),
    (b"- path: caf\xe9", r"mix\.yaml: not UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), BAD_LISTS)
def test_a_wrong_list_of_sources_is_one_clear_line(tmp_path, content, message) -> None:
    write(tmp_path / "a.txt", "text")
    listing = write(tmp_path / "mix.yaml", content)
    with pytest.raises(EvoSpecError, match=message) as caught:
        find_sources([listing])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_paths_are_named(tmp_path) -> None:
    with pytest.raises(EvoSpecError, match="no such file or folder"):
        read_training_data([tmp_path / "nothing.jsonl"])
    with pytest.raises(EvoSpecError, match=r"mix\.yaml cannot be read"):
        read_training_data([tmp_path / "mix.yaml"])
    with pytest.raises(EvoSpecError, match="holds no text or JSON lines"):
        read_training_data([tmp_path])
    with pytest.raises(EvoSpecError, match="no prompts with split 'train'"):
        read_training_data([write_lines(tmp_path / "a.jsonl", {"prompt": "x", "split": "eval"})], "train")


def test_a_file_that_vanishes_is_one_clear_line(tmp_path) -> None:
    path = write(tmp_path / "a.txt", "text")
    (source,) = find_sources([path])
    path.unlink()
    with pytest.raises(EvoSpecError, match=r"a\.txt cannot be read: No such file"):
        list(read_texts(source, ReadProgress()))
    with pytest.raises(EvoSpecError, match=r"a\.txt cannot be read: No such file"):
        print(source.bytes)


def test_without_text_of_the_target_nobody_answers_prompts(tmp_path) -> None:
    prompts = write_lines(tmp_path / "a.jsonl", {"prompt": "x"})
    with pytest.raises(EvoSpecError, match="nobody to answer"):
        read_training_data([prompts], on_policy_weight=0)
    with pytest.raises(EvoSpecError, match="needs --data"):
        read_training_data([], on_policy_weight=0)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(EvoSpecError, match="must be a number of at least 0"):
            read_training_data([], on_policy_weight=weight)
