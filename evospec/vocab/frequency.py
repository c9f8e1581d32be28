"""Token frequencies of a corpus file, for static vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from evospec.errors import EvoSpecError


def corpus_ranks(file: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> np.ndarray:
    """Token ids by falling frequency, distinct, int64; those that never occur are left out.

    A file whose name ends in .json holds the list itself: token ids, most frequent first, as JSON.
    Any other is text (.jsonl: a `text` or `prompt` a line), tokenised and counted here.

    Raises:
        EvoSpecError: the file can't be read, or holds something else.
    """
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return _listed(file, json.loads(content), vocab_size)
        texts = _texts(file, content) if file.suffix == ".jsonl" else [content]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EvoSpecError(f"cannot read corpus file {file}: {error}") from None
    counts = np.zeros(vocab_size, dtype=np.int64)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        counts += np.bincount(np.asarray(ids, dtype=np.int64), minlength=vocab_size)[:vocab_size]
    ranked = np.argsort(-counts, kind="stable")
    return ranked[: int((counts > 0).sum())]


def _listed(file: Path, ids: object, vocab_size: int) -> np.ndarray:
    if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < vocab_size for each in ids):
        raise EvoSpecError(f"corpus file {file}: expected a JSON list of token ids below {vocab_size}")
    if len(set(ids)) != len(ids):
        raise EvoSpecError(f"corpus file {file}: a token id comes twice")
    return np.array(ids, dtype=np.int64)


def _texts(file: Path, content: str) -> list[str]:
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        record = json.loads(line)
        text = None
        if isinstance(record, dict):
            text = record.get("text", record.get("prompt"))
        if not isinstance(text, str):
            raise EvoSpecError(f"corpus file {file}, line {number}: expected an object with `text`")
        texts.append(text)
    return texts
