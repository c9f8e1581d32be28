"""Where training data comes from: files, folders, and YAML files that list them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal, NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evospec.errors import EvoSpecError
from evospec.training.reading import JSON_LINES, ReadProgress, is_text, json_objects, size_of

Kind = Literal["prompts", "text", "chat"]

_LISTS = frozenset({".yaml", ".yml"})


class Columns(BaseModel):
    """Which column of a JSON line holds what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = "prompt"
    answer: str = "answer"
    text: str = "text"
    messages: str = "messages"


class SourceSpec(BaseModel):
    """One entry of a YAML list of sources.

    Attributes:
        kind: `prompts` are user turns that the target answers, `chat` finished conversations,
            `text` is learnt as it is; None infers it from the columns of each file's first line.
        split: only JSON lines whose `split` is this.
        weight: see `evospec.training.mixing`.
        template: the prompt (kinds prompts, chat) or text, put together from columns,
            as in `"{question}\\n\\n{context}"`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    kind: Kind | None = None
    columns: Columns = Columns()
    split: str | None = None
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)
    template: str | None = None

    @field_validator("template")
    @classmethod
    def _plain_fields(cls, template: str | None) -> str | None:
        if template is None:
            return None
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
        if not fields or any(not name or form or convert for _, name, form, convert in fields):
            raise ValueError("expected columns in braces, as in {question}")
        return template


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one kind, read the same way; `skipped` counts files of a folder that were left out."""

    spec: SourceSpec
    kind: Kind
    files: tuple[Path, ...]
    skipped: int = 0

    @property
    def name(self) -> str:
        """The last part of its path: what a manifest may tell."""
        return self.spec.path.name or self.spec.path.resolve().name

    @property
    def bytes(self) -> int:
        return sum(size_of(file) for file in self.files)


def find_sources(paths: Sequence[Path], split: str | None = None) -> list[Source]:
    """The sources that paths name: JSON lines, text files, folders, YAML lists.

    Args:
        split: for JSON lines of sources that name no split of their own.

    Raises:
        EvoSpecError: naming what is missing, empty, unreadable or unknown.
    """
    specs: list[SourceSpec] = []
    for path in paths:
        listed = path.suffix.lower() in _LISTS
        specs += _read_list(path) if listed else [SourceSpec(path=path.expanduser())]
    filled = [spec if spec.split else spec.model_copy(update={"split": split}) for spec in specs]
    return [source for spec in filled for source in _expand(spec)]


def _read_list(file: Path) -> list[SourceSpec]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvoSpecError(f"the list of sources {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise EvoSpecError(f"{file}: not UTF-8 ({error.reason}): convert the file to UTF-8") from None
    except yaml.YAMLError as error:
        raise EvoSpecError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, list) or not content:
        raise EvoSpecError(f"{file}: expected a list of sources, as in `- path: texts/`")
    return [_read_spec(entry, file, number) for number, entry in enumerate(content, start=1)]


def _read_spec(entry: Any, file: Path, number: int) -> SourceSpec:
    try:
        spec = SourceSpec.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            model = Columns if key.startswith("columns.") else SourceSpec
            raise EvoSpecError(
                f"{file}: source {number}: unknown key {key!r} (there are: {', '.join(model.model_fields)})"
            ) from None
        raise EvoSpecError(f"{file}: source {number}: {key + ': ' if key else ''}{first['msg']}") from None
    return spec.model_copy(update={"path": file.parent / spec.path.expanduser()})


def _expand(spec: SourceSpec) -> list[Source]:
    if spec.path.is_dir():
        return _expand_folder(spec)
    if not spec.path.is_file():
        raise EvoSpecError(f"training data {spec.path}: there is no such file or folder")
    is_json = spec.path.suffix.lower() in JSON_LINES
    if not is_json and spec.kind not in (None, "text"):
        raise EvoSpecError(f"{spec.path}: kind {spec.kind} needs JSON lines (.jsonl)")
    kind = spec.kind or (_infer_kind(spec.path, spec) if is_json else "text")
    if kind is None:
        raise EvoSpecError(f"training data {spec.path} is empty")
    return [Source(spec, kind, (spec.path,))]


def _expand_folder(spec: SourceSpec) -> list[Source]:
    """One source for each kind of file in a folder; names with a leading dot are passed over."""
    files: dict[Kind, list[Path]] = {}
    skipped = 0
    for file in _walk(spec.path):
        kind = _kind_in_folder(file, spec)
        if kind is None:
            skipped += 1
        else:
            files.setdefault(kind, []).append(file)
    if not files:
        raise EvoSpecError(f"training data {spec.path}: the folder holds no text or JSON lines to read")
    # The first source reports the skipped files, so that sums over sources are right.
    counts = [skipped] + [0] * (len(files) - 1)
    return [
        Source(spec, kind, tuple(found), count)
        for (kind, found), count in zip(files.items(), counts, strict=True)
    ]


def _walk(folder: Path) -> list[Path]:
    def fail(error: OSError) -> NoReturn:
        raise EvoSpecError(f"training data {error.filename} cannot be read: {error.strerror}")

    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _kind_in_folder(file: Path, spec: SourceSpec) -> Kind | None:
    if not file.is_file() or not size_of(file) or not is_text(file):
        return None
    if file.suffix.lower() in JSON_LINES:
        return spec.kind or _infer_kind(file, spec)
    return "text" if spec.kind in (None, "text") else None


def _infer_kind(file: Path, spec: SourceSpec) -> Kind | None:
    """The kind that the columns of the first line speak for; None for a file without lines."""
    for number, record in json_objects(file, ReadProgress()):
        columns = spec.columns
        has_prompt = columns.prompt in record or spec.template is not None
        if columns.messages in record or (has_prompt and columns.answer in record):
            return "chat"
        if columns.prompt in record:
            return "prompts"
        if columns.text in record:
            return "text"
        raise EvoSpecError(
            f"{file}:{number}: no column {columns.prompt!r}, {columns.messages!r} or {columns.text!r} "
            f"(there are: {', '.join(record) or 'none'}); name columns in a YAML list of sources"
        )
    return None
