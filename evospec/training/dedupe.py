"""Duplicate documents, exact and near, found by hashes of normalised token ids.

Normalised means: letters of one case, no white space, no special tokens. Exact
duplicates agree in all normalised ids. Near-duplicates have answers whose sets of
5-token shingles are similar (Jaccard), estimated by MinHash (Broder 1997) and found
through locality-sensitive hashing: two answers are compared when one of BANDS bands
of their signatures is equal. Own code because it is 60 lines of numpy: packages for
it keep a Python object per document and hash text, not token ids.
"""

from __future__ import annotations

import hashlib
import string
from array import array
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from evospec.training.corpus import Document

SHINGLE = 5
BANDS, ROWS = 16, 4  # a pair with similarity s is compared with probability 1 - (1 - s^4)^16: 0.9998 at 0.8
HASHES = BANDS * ROWS
SHORTEST_COMPARED = 32  # answers with fewer normalised tokens are alike too easily
NEAR = 0.8

# Markers of a space or line break in the tokens of byte-level BPE and SentencePiece.
_SPACES = "ĠĊĉčĂ▁" + string.whitespace
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PAIRS_AT_ONCE = 65_536


@dataclass(slots=True)
class Sketches:
    """What is kept of each document to find its duplicates: 265 bytes."""

    digests: array[int] = field(default_factory=lambda: array("Q"))
    signatures: bytearray = field(default_factory=bytearray)
    comparable: array[int] = field(default_factory=lambda: array("b"))

    def __len__(self) -> int:
        return len(self.digests)


class Sketcher:
    """Sketches documents of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, seed: int = 0) -> None:
        self._normal = normal_ids(tokenizer, vocab_size)
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(2**64, size=(HASHES, 1), dtype=np.uint64) | np.uint64(1)
        self._terms = rng.integers(2**64, size=(HASHES, 1), dtype=np.uint64)

    def add(self, document: Document, sketches: Sketches) -> None:
        normal = self._normal[document.tokens]
        whole = normal[normal >= 0].astype(np.uint32)
        digest = hashlib.blake2b(whole.tobytes(), digest_size=8).digest()
        sketches.digests.append(int.from_bytes(digest, "little"))
        answer = normal[document.answer :]
        answer = answer[answer >= 0]
        comparable = len(answer) >= SHORTEST_COMPARED
        sketches.comparable.append(comparable)
        signature = self.signature(answer) if comparable else np.zeros(HASHES, dtype=np.uint32)
        sketches.signatures += signature.tobytes()

    def signature(self, ids: np.ndarray) -> np.ndarray:
        """MinHash of the shingles of `ids` [at least SHINGLE], uint32 [HASHES]."""
        shingles = np.unique(_shingles(ids))
        # Multiply-shift hashing: the upper half of a·x + b mod 2^64 is universal in x.
        hashed = (self._factors * shingles + self._terms) >> np.uint64(32)  # [hashes, shingles]
        return hashed.min(axis=1).astype(np.uint32)


def normal_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """For each token id the lowest id that differs in case and spaces only, or -1 for neither
    letters nor signs (white space, special tokens); int64 [vocab]."""
    size = max(len(tokenizer), vocab_size)
    normal = np.arange(size)
    first: dict[str, int] = {}
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if token is not None:  # ids may have gaps
            text = token.strip(_SPACES).translate(_LOWER)
            normal[index] = first.setdefault(text, index) if text else -1
    normal[tokenizer.all_special_ids] = -1
    return normal


def find_duplicates(sketches: Sketches) -> np.ndarray:
    """Documents that repeat an earlier one, bool [documents]: exact duplicates."""
    digests = np.frombuffer(sketches.digests, dtype=np.uint64)
    duplicate = np.ones(len(digests), dtype=bool)
    duplicate[np.unique(digests, return_index=True)[1]] = False
    return duplicate


def find_near_duplicates(sketches: Sketches, without: np.ndarray, similarity: float = NEAR) -> np.ndarray:
    """Documents whose answer is much like an earlier one's, bool [documents].

    Each is compared with the earliest document that shares a band with it, whether that
    one stays or not: of a chain of near-duplicates the first stays.

    Args:
        without: documents to leave out of the comparison, bool [documents].
    """
    near = np.zeros(len(sketches), dtype=bool)
    compared = np.flatnonzero(np.frombuffer(sketches.comparable, dtype=np.int8).astype(bool) & ~without)
    if not len(compared):
        return near
    signatures = np.frombuffer(sketches.signatures, dtype=np.uint32).reshape(-1, HASHES)
    for band in range(BANDS):
        rows = signatures[compared, band * ROWS : (band + 1) * ROWS]
        _, first, group = np.unique(_row_hashes(rows), return_index=True, return_inverse=True)
        later = np.flatnonzero(first[group] != np.arange(len(rows)))
        earlier = first[group[later]]
        alike = _alike(signatures, compared[earlier], compared[later], similarity)
        near[compared[later[alike]]] = True
    return near


def _alike(signatures: np.ndarray, left: np.ndarray, right: np.ndarray, similarity: float) -> np.ndarray:
    """Whether pairs have estimated similarity of at least this, bool [pairs]."""
    alike = np.zeros(len(left), dtype=bool)
    for begin in range(0, len(left), _PAIRS_AT_ONCE):
        part = slice(begin, begin + _PAIRS_AT_ONCE)
        alike[part] = (signatures[left[part]] == signatures[right[part]]).mean(axis=1) >= similarity
    return alike


def _shingles(ids: np.ndarray) -> np.ndarray:
    """Hashes of all runs of SHINGLE ids, uint64 [ids - SHINGLE + 1]."""
    return _row_hashes(np.lib.stride_tricks.sliding_window_view(ids, SHINGLE))


def _row_hashes(rows: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row of integers [n, width], uint64 [n]."""
    hashed = np.zeros(len(rows), dtype=np.uint64)
    for column in range(rows.shape[1]):
        hashed = _mix(hashed ^ rows[:, column].astype(np.uint64))
    return hashed


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele et al. 2014): every input bit changes half of the output's."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
