"""The manifest of a corpus: what went in, from where, and what was left out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

SourceKind = Literal["prompts", "text", "chat", "on-policy"]

WEIGHTING = (
    "weight: a source's part of the corpus by tokens, relative to the other weights; where no source has "
    "one, all documents are kept. Reached by leaving documents out (dropped.weight), never by repeating "
    "any. Lists of prompts are weighed against each other, by number of prompts."
)


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dropped(Record):
    """Documents (of a list of prompts: prompts) that were left out, by the first reason that applied.

    Attributes:
        short: fewer tokens to learn from than `settings.shortest`, or no answer at all.
        long: a conversation whose first answer would begin behind `settings.longest`.
        degenerate: mostly one short loop (see `evospec.align.degenerate`).
        duplicate, near_duplicate: see `evospec.training.dedupe`.
        weight: to reach the proportion of weights.
        files: files of a folder, not documents: binary, empty, or of another kind.
    """

    short: int = 0
    long: int = 0
    degenerate: int = 0
    duplicate: int = 0
    near_duplicate: int = 0
    weight: int = 0
    files: int = 0


class SourceReport(Record):
    """What one source gave.

    Attributes:
        name: last part of its path, or who wrote it.
        records: lines, blocks of text, or conversations that were read.
        documents, tokens: what is in the corpus. Of `prompts` there are none: the
            answers to them count as `on-policy`.
        weight: as `WEIGHTING` says; null where no source has one.
        share: part of all tokens in the corpus.
    """

    name: str
    kind: SourceKind
    records: int
    documents: int
    tokens: int
    weight: float | None = None
    share: float = 0.0
    dropped: Dropped = Dropped()


class CorpusManifest(Record):
    """What a corpus holds. Documents lie in the order of `sources`.

    Attributes:
        tokenizer: fingerprint of the tokenizer that the ids belong to; null where unknown.
        settings: how it was made.
    """

    format: Literal[2] = 2
    tokenizer: str | None
    documents: int
    tokens: int
    weighting: str = WEIGHTING
    sources: tuple[SourceReport, ...]
    settings: dict[str, JsonValue] = {}
