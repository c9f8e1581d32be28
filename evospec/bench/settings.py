"""What a decode bench is asked to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue, ValidationError

from evospec.bench.results import PLAIN, shown_name
from evospec.config import VocabularyConfig
from evospec.errors import EvoSpecError
from evospec.models.loading import DeviceSetting, DtypeSetting

MOST_REQUESTS = 1024
DEFAULT_POLICIES = (PLAIN, "full", "fr-spec:32768", "evospec")


@dataclass(frozen=True, slots=True)
class Lessons:
    """Prompts that learning policies decode before anything counts; what they learn from them is kept.

    Attributes:
        files: of prompts; none: there are no lessons.
        split, limit: of these files' lines, and prompts per domain.
    """

    files: tuple[Path, ...] = ()
    split: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What to run.

    Attributes:
        limit: prompts per domain.
        policies: arms, as `evospec.bench.arms` reads them; plain decoding is always one.
        batch: requests decoded together; `more_batches` are measured after it.
        drafting: of the arms that name none.
        assistant: model that drafts for transformers' assisted generation.
        profile: break cycles down in a pass of its own.
        upkeep: measure what changes between cycles cost, in that pass.
        compare: hold outputs against plain decoding's; of random weights they say nothing.
        adapters: names and files of adapters that arms may draft with, as in `evospec+NAME`.
    """

    target: str
    prompts: tuple[Path, ...]
    drafter: str = "default"
    split: str | None = None
    limit: int | None = None
    policies: tuple[str, ...] = DEFAULT_POLICIES
    drafting: str = "auto"
    assistant: str | None = None
    device: DeviceSetting = "auto"
    dtype: DtypeSetting = "auto"
    threads: int = 0
    batch: int = 1
    more_batches: tuple[int, ...] = ()
    max_tokens: int = 128
    draft_length: int = 5
    temperature: float = 0.0
    seed: int = 0
    chat: bool = True
    profile: bool = True
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    lessons: Lessons = Lessons()
    upkeep: bool = True
    compare: bool = True
    adapters: tuple[tuple[str, Path], ...] = ()

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.adapters)

    def described(self) -> dict[str, JsonValue]:
        """For the result file: names, no folders."""
        return {
            "target": shown_name(self.target),
            "drafter": shown_name(self.drafter),
            "prompts": [file.name for file in self.prompts],
            "split": self.split,
            "limit": self.limit,
            "policies": list(self.policies),
            "drafting": self.drafting,
            "assistant": None if self.assistant is None else shown_name(self.assistant),
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "batch": [self.batch, *self.more_batches],
            "max_tokens": self.max_tokens,
            "draft_length": self.draft_length,
            "temperature": self.temperature,
            "seed": self.seed,
            "chat": self.chat,
            "capacity": self.vocabulary.capacity,
            "core": self.vocabulary.core,
            "warm": [file.name for file in self.lessons.files],
            "warm_split": self.lessons.split,
            "warm_limit": self.lessons.limit,
        }


def vocabulary(capacity: int, core: int) -> VocabularyConfig:
    """Sizes of the dynamic policies. Raises EvoSpecError when the core leaves too little room."""
    try:
        return VocabularyConfig(capacity=capacity, core=core)
    except ValidationError as error:
        raise EvoSpecError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def batch_sizes(text: str) -> tuple[int, ...]:
    """Sizes as they are written, comma-separated; raises EvoSpecError for what is none."""
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isascii() and size.isdigit() and 1 <= int(size) <= MOST_REQUESTS for size in sizes):
        raise EvoSpecError(f"batch {text!r}: write sizes from 1 to {MOST_REQUESTS}, comma-separated")
    return tuple(dict.fromkeys(int(size) for size in sizes))
