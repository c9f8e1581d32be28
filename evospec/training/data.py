"""Training data that users bring: texts and conversations to learn, prompts for the target to answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evospec.errors import EvoSpecError
from evospec.training.manifest import Dropped, SourceReport
from evospec.training.mixing import choose_documents, weighted_amounts
from evospec.training.reading import ReadProgress
from evospec.training.records import read_texts
from evospec.training.sources import Source, find_sources


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What goes into a corpus.

    Attributes:
        prompts: user turns that the target answers.
        sources: texts and conversations, read when the corpus is written.
        prompt_reports: what each list of prompts gave.
        on_policy_weight: weight of the text that the target writes; 0: it writes none;
            None: no weight of its own (see `evospec.training.mixing`).
    """

    prompts: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    prompt_reports: tuple[SourceReport, ...] = ()
    on_policy_weight: float | None = None


@dataclass(slots=True)
class _PromptList:
    """Prompts of one source that no earlier one had."""

    source: Source
    texts: list[str]
    records: int
    dropped: Dropped


def read_training_data(
    paths: Sequence[Path], split: str | None = None, on_policy_weight: float | None = None, seed: int = 0
) -> TrainingData:
    """Finds the sources that `paths` name, and reads those that are lists of prompts.

    Args:
        paths: files, folders and YAML lists, as `evospec.training.sources.find_sources` takes them.
        split: only JSON lines whose `split` is this; None takes all.

    Raises:
        EvoSpecError: naming file and line of what can't be read, or that nothing was found.
    """
    if on_policy_weight is not None and not 0 <= on_policy_weight < math.inf:
        raise EvoSpecError(f"--on-policy-weight must be a number of at least 0, not {on_policy_weight}")
    found = find_sources(paths, split)
    lists = _weighted([source for source in found if source.kind == "prompts"], seed)
    documents = tuple(source for source in found if source.kind != "prompts")
    if on_policy_weight == 0 and lists:
        raise EvoSpecError(
            f"{lists[0].source.spec.path} holds prompts, and --on-policy-weight 0 leaves nobody to answer "
            "them: give a weight above 0"
        )
    if on_policy_weight == 0 and not documents:
        raise EvoSpecError("--on-policy-weight 0 needs --data with text or conversations to learn from")
    return TrainingData(
        prompts=tuple(text for part in lists for text in part.texts),
        sources=documents,
        prompt_reports=tuple(_report(part) for part in lists),
        on_policy_weight=on_policy_weight,
    )


def _weighted(sources: Sequence[Source], seed: int) -> list[_PromptList]:
    """Lists of prompts, the longer ones cut where weights ask for it."""
    seen: set[str] = set()
    lists = [_read_prompts(source, seen) for source in sources]
    amounts = weighted_amounts(
        [len(part.texts) for part in lists], [part.source.spec.weight for part in lists]
    )
    rng = np.random.default_rng(seed)
    for part, amount in zip(lists, amounts, strict=True):
        chosen = choose_documents(np.ones(len(part.texts), dtype=np.int64), amount, rng)
        part.dropped = part.dropped.model_copy(update={"weight": int((~chosen).sum())})
        part.texts = [text for text, keep in zip(part.texts, chosen, strict=True) if keep]
    return lists


def _read_prompts(source: Source, seen: set[str]) -> _PromptList:
    """Prompts that differ from all `seen` in more than case and white space."""
    texts: list[str] = []
    records = blank = duplicate = 0
    for text in read_texts(source, ReadProgress()):
        records += 1
        normal = " ".join(text.split()).casefold()
        if not normal:
            blank += 1
        elif normal in seen:
            duplicate += 1
        else:
            seen.add(normal)
            texts.append(text)
    if not texts and not duplicate:
        split = source.spec.split
        chosen = f" with split {split!r}" if split else ""
        raise EvoSpecError(f"{source.spec.path}: no prompts{chosen}")
    dropped = Dropped(short=blank, duplicate=duplicate, files=source.skipped)
    return _PromptList(source, texts, records, dropped)


def _report(part: _PromptList) -> SourceReport:
    return SourceReport(
        name=part.source.name,
        kind="prompts",
        records=part.records,
        documents=0,
        tokens=0,
        weight=part.source.spec.weight,
        dropped=part.dropped,
    )
