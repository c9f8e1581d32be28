"""Records of a source: texts, prompts and conversations, taken from columns by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from evospec.errors import EvoSpecError
from evospec.training.reading import JSON_LINES, ReadProgress, json_objects, text_blocks
from evospec.training.sources import Source

_ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """Finished turns as a chat template takes them; `where` is file:line, for errors."""

    messages: tuple[dict[str, str], ...]
    where: str

    @property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)

    def upto_last_answer(self) -> Conversation | None:
        """Without what follows the assistant's last turn; None when the assistant never speaks."""
        answers = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        if not answers or answers[-1] == 0:
            return None
        return Conversation(self.messages[: answers[-1] + 1], self.where)

    def without_last(self) -> Conversation:
        return Conversation(self.messages[:-1], self.where)


@dataclass(frozen=True, slots=True)
class _Line:
    """One JSON line and where it stands."""

    record: dict[str, Any]
    where: str

    def text(self, column: str) -> str:
        value = self.value(column)
        if not isinstance(value, str):
            raise EvoSpecError(
                f"{self.where}: column {column!r} holds {type(value).__name__}, expected a string"
            )
        return _checked(value, self.where)

    def value(self, column: str) -> Any:
        if column not in self.record:
            raise EvoSpecError(
                f"{self.where}: no column {column!r} (there are: {', '.join(self.record) or 'none'})"
            )
        return self.record[column]

    def filled(self, template: str) -> str:
        """A template with columns in its braces."""
        parts = []
        for literal, column, _, _ in Formatter().parse(template):
            parts.append(literal)
            if column is not None:
                parts.append(self.text(column))
        return "".join(parts)


def read_texts(source: Source, progress: ReadProgress) -> Iterator[str]:
    """Texts or prompts of a source. Text files come in blocks of whole lines.

    Raises:
        EvoSpecError: naming file and line of what can't be read.
    """
    columns = source.spec.columns
    column = columns.prompt if source.kind == "prompts" else columns.text
    for file in source.files:
        if file.suffix.lower() not in JSON_LINES:
            yield from text_blocks(file, progress)
            continue
        for line in _lines(file, source, progress):
            template = source.spec.template
            yield line.text(column) if template is None else line.filled(template)


def read_conversations(source: Source, progress: ReadProgress) -> Iterator[Conversation]:
    """Conversations of a source, from a column of messages or from prompt and answer.

    Raises:
        EvoSpecError: naming file and line of what can't be read.
    """
    for file in source.files:
        for line in _lines(file, source, progress):
            yield _conversation(line, source)


def _lines(file: Path, source: Source, progress: ReadProgress) -> Iterator[_Line]:
    split = source.spec.split
    for number, record in json_objects(file, progress):
        if split is None or record.get("split") == split:
            yield _Line(record, f"{file}:{number}")


def _conversation(line: _Line, source: Source) -> Conversation:
    columns, template = source.spec.columns, source.spec.template
    if columns.messages in line.record and template is None:
        return Conversation(_messages(line, columns.messages), line.where)
    if columns.answer not in line.record and columns.prompt not in line.record:
        raise EvoSpecError(
            f"{line.where}: no column {columns.messages!r}, nor {columns.prompt!r} and {columns.answer!r} "
            f"(there are: {', '.join(line.record) or 'none'})"
        )
    prompt = line.text(columns.prompt) if template is None else line.filled(template)
    answer = line.text(columns.answer)
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Conversation(turns, line.where)


def _messages(line: _Line, column: str) -> tuple[dict[str, str], ...]:
    messages = line.value(column)
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise EvoSpecError(
            f"{line.where}: column {column!r} must hold a list of messages with a `role` "
            "(system, user, assistant) and a `content` string"
        )
    return tuple(
        {"role": message["role"], "content": _checked(message["content"], line.where)} for message in messages
    )


def _is_message(message: object) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and isinstance(message.get("content"), str)
    )


def _checked(text: str, where: str) -> str:
    """JSON can escape half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EvoSpecError(f"{where}: the text holds half a surrogate pair (\\ud800 … \\udfff)") from None
    return text
