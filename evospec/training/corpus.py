"""A corpus of token documents on disk: memory-mapped tokens, offsets, and a manifest of what went in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evospec.errors import EvoSpecError

_TOKENS, _OFFSETS, _ANSWERS, _MANIFEST = "tokens.npy", "offsets.npy", "answers.npy", "manifest.json"


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One conversation: token ids, int64 [length]; the target's answer begins at `answer`."""

    tokens: np.ndarray
    answer: int


class Corpus:
    """Documents of a folder, read through memory maps.

    Raises:
        EvoSpecError: the folder holds no corpus, or an empty one.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._tokens = np.load(folder / _TOKENS, mmap_mode="r", allow_pickle=False)
            self._offsets = np.load(folder / _OFFSETS, allow_pickle=False)
            self._answers = np.load(folder / _ANSWERS, allow_pickle=False)
            self.manifest: dict[str, object] = json.loads((folder / _MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise EvoSpecError(f"no training corpus in {folder}: {error}") from None
        if not len(self):
            raise EvoSpecError(f"the training corpus in {folder} is empty: give more data or more minutes")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Document:
        begin, end = self._offsets[index], self._offsets[index + 1]
        return Document(np.asarray(self._tokens[begin:end], dtype=np.int64), int(self._answers[index]))

    @property
    def token_count(self) -> int:
        return int(self._offsets[-1])

    def lengths(self) -> np.ndarray:
        """Tokens per document [documents]."""
        return np.diff(self._offsets)

    def answer_frequencies(self, vocab_size: int) -> np.ndarray:
        """How often the target itself wrote each token, int64 [vocab]."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for index in range(len(self)):
            document = self[index]
            counts += np.bincount(document.tokens[document.answer :], minlength=vocab_size)
        return counts


def write_corpus(documents: Sequence[Document], folder: Path, manifest: dict[str, object]) -> Corpus:
    """Writes documents in the given order and opens the result."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [len(document.tokens) for document in documents]
    np.save(
        folder / _TOKENS,
        np.concatenate([np.zeros(0), *(document.tokens for document in documents)]).astype(np.uint32),
    )
    np.save(folder / _OFFSETS, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))
    np.save(folder / _ANSWERS, np.asarray([document.answer for document in documents], dtype=np.int64))
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return Corpus(folder)


def rank_tokens(frequencies: np.ndarray) -> np.ndarray:
    """Ids of the tokens that occur, by falling frequency (ties: lower id first), int64."""
    order = np.argsort(-frequencies, kind="stable")
    return order[frequencies[order] > 0]


def length_batches(
    lengths: np.ndarray, tokens_per_batch: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Document indices in batches of like length, in random order: little padding, no packing.

    Each batch holds at most `tokens_per_batch` tokens after padding (one document at least).
    """
    order = np.argsort(lengths + rng.uniform(0, 16, len(lengths)))
    batches: list[np.ndarray] = []
    begin = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end - begin + 1) * lengths[order[end]] > tokens_per_batch
        if full:
            batches.append(order[begin:end])
            begin = end
    for index in rng.permutation(len(batches)):
        yield batches[index]
