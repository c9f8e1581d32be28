"""Assembles a corpus: sources are tokenised, filtered, deduplicated, mixed by weight and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from pydantic import JsonValue

from evospec.align.degenerate import is_degenerate
from evospec.errors import EvoSpecError
from evospec.models.target import Target
from evospec.training.corpus import Corpus, Document
from evospec.training.corpus_writer import CorpusWriter
from evospec.training.dedupe import Sketcher, Sketches, find_duplicates, find_near_duplicates
from evospec.training.encoding import Encoder
from evospec.training.manifest import CorpusManifest, Dropped, SourceKind, SourceReport
from evospec.training.mixing import choose_documents, weighted_amounts
from evospec.training.plan import LONGEST_DOCUMENT
from evospec.training.reading import ReadProgress
from evospec.training.records import read_conversations, read_texts
from evospec.training.sources import Source

_REPORTED_EVERY = 256  # documents


@dataclass(frozen=True, slots=True)
class AssemblyPlan:
    """What makes a document: at most `longest` tokens, of them at least `shortest` to learn from."""

    longest: int = LONGEST_DOCUMENT
    shortest: int = 8
    seed: int = 0


@dataclass(slots=True)
class _Section:
    """Documents first..last-1 of the corpus under way, all of one source."""

    name: str
    kind: SourceKind
    weight: float | None
    first: int
    last: int = 0
    records: int = 0
    short: int = 0
    long: int = 0
    degenerate: int = 0
    files: int = 0


class CorpusBuilder:
    """Collects the documents of all sources, then decides which of them stay.

    Sources given first win where two hold the same text. The target's own text comes
    last. Use as a context manager; nothing is left in `folder` unless `finish` returned.

    Raises:
        EvoSpecError: naming what can't be read or written, or a source that gives nothing.
    """

    def __init__(self, target: Target, folder: Path, plan: AssemblyPlan) -> None:
        self._plan = plan
        self._folder = folder
        self._target = target
        self._writer = CorpusWriter(folder)
        self._sketcher = Sketcher(target.tokenizer, target.vocab_size)
        self._sketches = Sketches()
        self._sections: list[_Section] = []
        self._tokens = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def read(self, sources: Sequence[Source], report: Callable[[int, float], None]) -> None:
        """Tokenises sources of kind `text` or `chat`.

        Args:
            report: called with (tokens so far, share of the bytes read).
        """
        progress = ReadProgress()
        size = max(sum(source.bytes for source in sources), 1)
        for source in sources:
            self._read(source, progress, lambda: report(self._tokens, min(progress.bytes / size, 1.0)))

    def _read(self, source: Source, progress: ReadProgress, report: Callable[[], None]) -> None:
        section = _Section(
            source.name, source.kind, source.spec.weight, len(self._writer), files=source.skipped
        )
        plan = self._plan
        longest = min(plan.longest, self._target.max_length)
        encoder = Encoder(self._target.tokenizer, self._target.eos_ids, longest, plan.shortest)
        if source.kind == "chat":
            documents = encoder.conversations(read_conversations(source, progress))
        else:
            documents = encoder.texts(read_texts(source, progress))
        self._add(documents, section, report)
        section.records = encoder.counts.records
        section.short += encoder.counts.unanswered
        section.long = encoder.counts.long
        if section.first == section.last:
            raise EvoSpecError(_nothing_left(source, section))

    def write(self, documents: Sequence[Document], weight: float | None) -> None:
        """Takes what the target wrote."""
        section = _Section("target", "on-policy", weight, len(self._writer), records=len(documents))
        self._add(documents, section, lambda: None)

    def finish(self, settings: Mapping[str, JsonValue], others: Sequence[SourceReport] = ()) -> Corpus:
        """Drops duplicates, cuts sources to their weights, stores the rest and opens it.

        Args:
            settings: for the manifest, beside the plan's own.
            others: reports of sources without documents.
        """
        lengths = self._writer.lengths
        duplicate = find_duplicates(self._sketches)
        near = find_near_duplicates(self._sketches, without=duplicate)
        fresh = ~duplicate & ~near
        if not fresh.any():
            raise EvoSpecError(f"no document is left for the corpus in {self._folder}: give more data")
        keep = self._mix(lengths, fresh)
        total = int(lengths[keep].sum())
        reports = [
            _report(section, lengths, duplicate, near, keep, total=total) for section in self._sections
        ]
        manifest = CorpusManifest(
            tokenizer=self._target.fingerprint.tokenizer,
            documents=int(keep.sum()),
            tokens=total,
            sources=(*others, *reports),
            settings={**asdict(self._plan), **settings},
        )
        self._writer.commit(manifest, keep)
        return Corpus(self._folder, self._target.fingerprint.tokenizer)

    def _add(self, documents: Iterable[Document], section: _Section, report: Callable[[], None]) -> None:
        for count, document in enumerate(documents):
            learnt = document.tokens[document.answer :]
            if len(learnt) < self._plan.shortest:
                section.short += 1
            elif is_degenerate(learnt):
                section.degenerate += 1
            else:
                self._writer.add(document)
                self._sketcher.add(document, self._sketches)
                self._tokens += len(document.tokens)
            if count % _REPORTED_EVERY == 0:
                report()
        section.last = len(self._writer)
        self._sections.append(section)
        report()

    def _mix(self, lengths: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """Which documents stay, bool [documents]."""
        parts = [np.flatnonzero(fresh[part.first : part.last]) + part.first for part in self._sections]
        amounts = weighted_amounts(
            [int(lengths[part].sum()) for part in parts], [part.weight for part in self._sections]
        )
        rng = np.random.default_rng(self._plan.seed)
        keep = np.zeros(len(lengths), dtype=bool)
        for part, amount in zip(parts, amounts, strict=True):
            keep[part[choose_documents(lengths[part], amount, rng)]] = True
        return keep


def _report(
    section: _Section,
    lengths: np.ndarray,
    duplicate: np.ndarray,
    near: np.ndarray,
    keep: np.ndarray,
    *,
    total: int,
) -> SourceReport:
    part = slice(section.first, section.last)
    tokens = int(lengths[part][keep[part]].sum())
    return SourceReport(
        name=section.name,
        kind=section.kind,
        records=section.records,
        documents=int(keep[part].sum()),
        tokens=tokens,
        weight=section.weight,
        share=round(tokens / total, 4),
        dropped=Dropped(
            short=section.short,
            long=section.long,
            degenerate=section.degenerate,
            duplicate=int(duplicate[part].sum()),
            near_duplicate=int(near[part].sum()),
            weight=int((~(keep | duplicate | near))[part].sum()),
            files=section.files,
        ),
    )


def _nothing_left(source: Source, section: _Section) -> str:
    split = f" with split {source.spec.split!r}" if source.spec.split else ""
    if not section.records:
        return f"training data {source.spec.path} is empty: nothing to read{split}"
    counts = {"too short": section.short, "too long": section.long, "degenerate loops": section.degenerate}
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return f"{source.spec.path}: no document is left{split} of {section.records} read ({reasons or 'blank'})"
