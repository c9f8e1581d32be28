"""Writes a corpus as a stream: documents go to disk one by one, and all of them appear at once or not."""

from __future__ import annotations

import os
import shutil
from array import array
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from evospec.training.disk import disk_errors
from evospec.training.manifest import CorpusManifest

if TYPE_CHECKING:
    from evospec.training.corpus import Document

TOKENS, OFFSETS, ANSWERS, MANIFEST = "tokens.npy", "offsets.npy", "answers.npy", "manifest.json"
_PARTIAL = ".partial"
_ADVICE = "make room, or choose another --corpus (nothing incomplete is left there)"
_COPIED_AT_ONCE = 1 << 22  # tokens
_ITEM = np.dtype("<u4")


class CorpusWriter:
    """Collects documents in a hidden sub-folder of `folder`; `commit` moves them into place.

    The manifest comes last, and without one a folder holds no corpus, so that an
    interrupted run leaves nothing that reads as whole. Use as a context manager: what
    was not committed is removed.

    Raises:
        DiskError: the folder can't be written to (the disk is full, say).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial = folder / _PARTIAL
        self._lengths = array("q")
        self._answers = array("q")
        with disk_errors(self._folder, _ADVICE):
            shutil.rmtree(self._partial, ignore_errors=True)  # what a killed run left
            self._partial.mkdir(parents=True)
            self._stream: BinaryIO = (self._partial / TOKENS).open("w+b")
            _write_header(self._stream, 0)
        self._start = self._stream.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per document so far, int64 [documents]."""
        return np.array(self._lengths, dtype=np.int64)

    def add(self, document: Document) -> None:
        with disk_errors(self._folder, _ADVICE):
            self._stream.write(document.tokens.astype(_ITEM).tobytes())
        self._lengths.append(len(document.tokens))
        self._answers.append(document.answer)

    def commit(self, manifest: CorpusManifest, keep: np.ndarray | None = None) -> None:
        """Makes the documents so far a corpus, in place of any that the folder holds.

        Args:
            keep: only these documents, bool [documents]; None keeps all.
        """
        kept = np.ones(len(self), dtype=bool) if keep is None else keep
        lengths = self.lengths
        with disk_errors(self._folder, _ADVICE):
            self._close_gaps(lengths, kept)
            tokens = int(lengths[kept].sum())
            self._stream.truncate(self._start + tokens * _ITEM.itemsize)
            self._stream.seek(0)
            _write_header(self._stream, tokens)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            offsets = np.concatenate(([0], np.cumsum(lengths[kept]))).astype(np.int64)
            np.save(self._partial / OFFSETS, offsets)
            np.save(self._partial / ANSWERS, np.array(self._answers, dtype=np.int64)[kept])
            (self._partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
            (self._folder / MANIFEST).unlink(missing_ok=True)
            for name in (TOKENS, OFFSETS, ANSWERS, MANIFEST):
                (self._partial / name).replace(self._folder / name)

    def _close_gaps(self, lengths: np.ndarray, kept: np.ndarray) -> None:
        """Moves kept documents to the front of the token file; they only ever move towards it."""
        ends = np.cumsum(lengths)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], kept, [False])).astype(np.int8)))
        target = 0
        for first, last in edges.reshape(-1, 2).tolist():  # runs of documents that are kept
            source, end = int(ends[first] - lengths[first]), int(ends[last - 1])
            if source == target:
                target = end
                continue
            while source < end:
                count = min(end - source, _COPIED_AT_ONCE)
                self._stream.seek(self._start + source * _ITEM.itemsize)
                data = self._stream.read(count * _ITEM.itemsize)
                self._stream.seek(self._start + target * _ITEM.itemsize)
                self._stream.write(data)
                source, target = source + count, target + count

    def _discard(self) -> None:
        with disk_errors(self._folder, _ADVICE):
            try:
                self._stream.close()  # flushes: a full disk shows here, too
            finally:
                shutil.rmtree(self._partial)


def _write_header(stream: BinaryIO, tokens: int) -> None:
    """NumPy reserves room in a header for a first axis that grows, so that its length never changes."""
    content = {"descr": _ITEM.str, "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(stream, content)
