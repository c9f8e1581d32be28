"""Identity of a corpus: whether a checkpoint's data order still means the same documents."""

from __future__ import annotations

import hashlib

import numpy as np

from evospec.training.corpus import Corpus

_SAMPLES = 256  # documents
_DIGITS = 16


def fingerprint_corpus(corpus: Corpus) -> str:
    """Short hash (16 hexadecimal digits) of all lengths and of the tokens of 256 documents."""
    digest = hashlib.sha256(corpus.lengths().astype("<i8").tobytes())
    for index in np.linspace(0, len(corpus) - 1, min(_SAMPLES, len(corpus))).astype(int).tolist():
        document = corpus[index]
        digest.update(document.tokens.astype("<i8").tobytes())
        digest.update(document.answer.to_bytes(8, "little"))
    return digest.hexdigest()[:_DIGITS]
