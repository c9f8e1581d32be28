"""A corpus of token documents on disk: memory-mapped tokens, offsets, and a manifest of what went in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue, ValidationError

from evospec.errors import EvoSpecError
from evospec.training.corpus_writer import ANSWERS, MANIFEST, OFFSETS, TOKENS, CorpusWriter
from evospec.training.manifest import CorpusManifest, SourceReport

_COUNTED_AT_ONCE = 1 << 22  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One conversation: token ids, int64 [length]; the target's answer begins at `answer`."""

    tokens: np.ndarray
    answer: int


class Corpus:
    """Documents of a folder, read through memory maps.

    Args:
        tokenizer: fingerprint of the tokenizer that the ids must belong to; None doesn't ask.

    Raises:
        EvoSpecError: the folder holds no whole corpus, an empty one, or another tokenizer's.
    """

    def __init__(self, folder: Path, tokenizer: str | None = None) -> None:
        try:
            manifest = (folder / MANIFEST).read_text(encoding="utf-8")
            self.manifest = CorpusManifest.model_validate_json(manifest)
            self._tokens = np.load(folder / TOKENS, mmap_mode="r", allow_pickle=False)
            self._offsets = np.load(folder / OFFSETS, allow_pickle=False)
            self._answers = np.load(folder / ANSWERS, allow_pickle=False)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise EvoSpecError(
                f"{folder / MANIFEST} is not a corpus manifest of this release ({where}: "
                f"{error.errors()[0]['msg']}): remove {folder}, and the corpus is written anew"
            ) from None
        except (OSError, ValueError) as error:
            raise EvoSpecError(f"no training corpus in {folder}: {error}") from None
        if len(self._answers) != len(self) or self.token_count != len(self._tokens):
            raise EvoSpecError(f"the corpus in {folder} is damaged: its files are of different corpora")
        if not len(self):
            raise EvoSpecError(f"the training corpus in {folder} is empty: give more data or more minutes")
        if tokenizer is not None and tokenizer != self.manifest.tokenizer:
            raise EvoSpecError(
                f"the corpus in {folder} was tokenised for another target (its tokenizer: "
                f"{self.manifest.tokenizer or 'unknown'}, this target's: {tokenizer}): "
                "choose another --corpus"
            )

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

    def on_policy(self) -> slice:
        """The documents that the target itself wrote: the last ones (maybe none)."""
        written = sum(source.documents for source in self.manifest.sources if source.kind == "on-policy")
        return slice(len(self) - written, len(self))

    def answer_frequencies(self, vocab_size: int) -> np.ndarray:
        """How often the target itself wrote each token, int64 [vocab].

        Of a corpus without text of the target: how often its documents' answers hold each.
        """
        counts = np.zeros(vocab_size, dtype=np.int64)
        documents = self.on_policy()
        first, last = (documents.start, len(self)) if documents.start < len(self) else (0, len(self))
        while first < last:
            reach = self._offsets[first] + _COUNTED_AT_ONCE
            end = min(max(int(np.searchsorted(self._offsets, reach, "right")) - 1, first + 1), last)
            counts += np.bincount(self._answer_tokens(first, end), minlength=vocab_size)
            first = end
        return counts

    def _answer_tokens(self, first: int, last: int) -> np.ndarray:
        """Tokens of the answers of documents first..last-1, in a row."""
        offsets = self._offsets[first : last + 1]
        starts = np.repeat(offsets[:-1] + self._answers[first:last], np.diff(offsets))
        return self._tokens[offsets[0] : offsets[-1]][np.arange(offsets[0], offsets[-1]) >= starts]


def write_corpus(
    documents: Sequence[Document],
    folder: Path,
    settings: Mapping[str, JsonValue],
    tokenizer: str | None = None,
) -> Corpus:
    """Writes documents of the target as they are, in the given order, and opens the result.

    Args:
        settings: for the manifest: how they were made.
        tokenizer: fingerprint of their tokenizer.
    """
    tokens = sum(len(document.tokens) for document in documents)
    source = SourceReport(
        name="target",
        kind="on-policy",
        records=len(documents),
        documents=len(documents),
        tokens=tokens,
        share=1.0,
    )
    manifest = CorpusManifest(
        tokenizer=tokenizer,
        documents=len(documents),
        tokens=tokens,
        sources=(source,),
        settings=dict(settings),
    )
    with CorpusWriter(folder) as writer:
        for document in documents:
            writer.add(document)
        writer.commit(manifest)
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
    begin = longest = 0
    for end in range(len(order)):
        length = int(lengths[order[end]])
        if end > begin and (end - begin + 1) * max(longest, length) > tokens_per_batch:
            batches.append(order[begin:end])
            begin, longest = end, 0
        longest = max(longest, length)
    if len(order):
        batches.append(order[begin:])
    for index in rng.permutation(len(batches)):
        yield batches[index]
