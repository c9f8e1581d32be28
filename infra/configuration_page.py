"""Writes docs/configuration.md from the config types: `python infra/configuration_page.py`."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from evospec.config import Config, Section

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

_MODULES = re.compile(r"\b(?:[a-z_]+\.)+")  # before the names of types
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

_HEAD = """# Configuration

One YAML file (`evospec serve --config FILE`), with a section per part. Every key can also be set by an
environment variable, `EVOSPEC_<SECTION>__<KEY>` (for example `EVOSPEC_ENGINE__DRAFT_LENGTH=3`), which
wins over the file; command-line options win over both. An unknown key or a value out of bounds is
refused at start, with its name. Every default here is our own choice; each can be changed.

```yaml
model:
  target: smollm2-135m
engine:
  max_batch: 4
serve:
  port: 8000
  replicas: 2
```

This page is made from the types in `evospec/config` by `python infra/configuration_page.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, field in Config.model_fields.items():
        section = field.annotation
        if get_origin(section) is tuple:  # a list of sections
            section = get_args(section)[0]
        if not (isinstance(section, type) and issubclass(section, Section)):
            raise TypeError(f"{name} is not a section")
        parts.append(f"## `{name}`\n\n{inspect.cleandoc(section.__doc__ or '')}\n")
        rows = [_row(key, value) for key, value in section.model_fields.items()]
        parts.append("| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return f"| `{key}` | {_type(field)} | | {_meaning(field)} |"
    shown = "null" if field.default is None else str(field.default).lower()
    if isinstance(field.default, str):
        shown = field.default
    return f"| `{key}` | {_type(field)} | `{shown}` | {_meaning(field)} |"


def _type(field: FieldInfo) -> str:
    if any(isinstance(part, type) and issubclass(part, Section) for part in get_args(field.annotation)):
        return "list of sections" if get_origin(field.annotation) is tuple else "section"
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(field.annotation))
    text = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
    return _MODULES.sub("", text).replace("None", "null").replace("|", "or")


def _meaning(field: FieldInfo) -> str:
    limits: dict[str, object] = {}
    for constraint in field.metadata:
        if is_dataclass(constraint) and not isinstance(constraint, type):
            limits |= asdict(constraint)
    bounds = ", ".join(f"{_SIGNS[name]} {value}" for name, value in limits.items() if name in _SIGNS)
    return " ".join(part for part in (field.description or "", f"({bounds})" if bounds else "") if part)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
