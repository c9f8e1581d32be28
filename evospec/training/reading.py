"""Files of training data, read as streams: JSON lines and blocks of text, with errors that say where."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evospec.errors import EvoSpecError

JSON_LINES = frozenset({".jsonl", ".ndjson"})
_BLOCK = 1 << 16  # bytes: about a dozen documents, so that cutting between blocks costs little
_BOM = "\ufeff"


@dataclass(slots=True)
class ReadProgress:
    """Bytes of training data read so far."""

    bytes: int = 0


def json_objects(file: Path, progress: ReadProgress) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank.

    Raises:
        EvoSpecError: the file can't be read, or naming the line that is no JSON object in UTF-8.
    """
    with _readable(file), file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            progress.bytes += len(line)
            if line.strip():
                yield number, _json_object(line, f"{file}:{number}")


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8").removeprefix(_BOM))
    except UnicodeDecodeError as error:
        raise EvoSpecError(f"{where}: not UTF-8 ({error.reason}): convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise EvoSpecError(f"{where}: not valid JSON: {error.msg} (column {error.colno})") from None
    except ValueError as error:  # a number of more digits than Python takes
        raise EvoSpecError(f"{where}: not valid JSON: {error}") from None
    except RecursionError:
        raise EvoSpecError(f"{where}: JSON nested too deeply") from None
    if not isinstance(record, dict):
        raise EvoSpecError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def text_blocks(file: Path, progress: ReadProgress) -> Iterator[str]:
    """The text of a file in blocks that end with a line where there are lines; line ends as they are.

    Raises:
        EvoSpecError: the file can't be read, is binary, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, offset = "", 0
    with _readable(file), file.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK)
            waiting = len(decoder.getstate()[0])  # bytes of a character that the last block began
            if b"\0" in block:
                raise EvoSpecError(f"{file} is a binary file: give text or JSON lines")
            try:
                text = rest + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise EvoSpecError(
                    f"{file}: not UTF-8 at byte {offset - waiting + error.start} ({error.reason}): "
                    "convert the file to UTF-8"
                ) from None
            offset += len(block)
            progress.bytes += len(block)
            if not block:
                break
            cut = text.rfind("\n") + 1 or len(text)
            yield text[:cut]
            rest = text[cut:]
        if text:
            yield text


def size_of(file: Path) -> int:
    """Bytes in a file.

    Raises:
        EvoSpecError: it can't be read.
    """
    with _readable(file):
        return file.stat().st_size


def is_text(file: Path) -> bool:
    """Whether a file is UTF-8 to its end, without zero bytes.

    Raises:
        EvoSpecError: it can't be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _readable(file), file.open("rb") as stream:
        while block := stream.read(1 << 20):
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                return False
            if b"\0" in block:
                return False
    return not decoder.getstate()[0]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EvoSpecError(f"training data {file} cannot be read: {error.strerror}") from None
