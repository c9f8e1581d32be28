"""Successor tables as bytes, to be merged across replicas: msgpack, size-capped and checked before use.

A blob is the msgpack array [schema, CRC-32 of payload, payload]; the payload is a msgpack map whose
arrays are little-endian bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgpack
import numpy as np

from evospec.errors import WireError
from evospec.vocab.successors import ABSENT, SuccessorLimits, SuccessorTable

SUCCESSOR_SCHEMA = 1
_OVERHEAD = 1024  # keys, headers, fingerprint
_LONGEST_STRING = 128
_INT32, _FLOAT32 = np.dtype("<i4"), np.dtype("<f4")
_ARRAYS: Mapping[str, np.dtype] = {
    "heads": _INT32,
    "totals": _FLOAT32,
    "successors": _INT32,
    "counts": _FLOAT32,
}


def encode(table: SuccessorTable, tokenizer: str) -> bytes:
    """Serialises a table, with the fingerprint of the tokenizer whose ids it holds."""
    payload = msgpack.packb(
        {
            "tokenizer": tokenizer,
            "width": table.successors.shape[1],
            **{
                name: np.ascontiguousarray(array, dtype=_ARRAYS[name]).tobytes()
                for name, array in _arrays(table).items()
            },
        }
    )
    blob: bytes = msgpack.packb([SUCCESSOR_SCHEMA, zlib.crc32(payload), payload])
    return blob


def max_bytes(limits: SuccessorLimits) -> int:
    """Length of the largest valid blob, rounded up."""
    return limits.heads * (8 + 8 * limits.successors) + _OVERHEAD


def decode(blob: bytes, tokenizer: str, vocab_size: int, limits: SuccessorLimits) -> SuccessorTable:
    """Reads a table.

    Raises:
        WireError: too large, damaged, of another schema or tokenizer, or not a table of counts.
    """
    largest = max_bytes(limits)
    if len(blob) > largest:
        raise WireError(f"successor table has {len(blob)} bytes, at most {largest} are taken")
    fields = _unpack(_open(blob, largest), largest)
    if not isinstance(fields, dict) or fields.keys() != {"tokenizer", "width", *_ARRAYS}:
        raise WireError("successor table is not a map of this schema's fields")
    if fields["tokenizer"] != tokenizer:
        raise WireError("successor table comes from another tokenizer")
    width = fields["width"]
    if type(width) is not int or not 1 <= width <= limits.successors:
        raise WireError(f"successor table: width is not between 1 and {limits.successors}")
    table = SuccessorTable(
        heads=_array("heads", fields["heads"]),
        totals=_array("totals", fields["totals"]),
        successors=_array("successors", fields["successors"]),
        counts=_array("counts", fields["counts"]),
    )
    heads = len(table.heads)
    if heads > limits.heads:
        raise WireError(f"successor table has {heads} heads, at most {limits.heads} are taken")
    if len(table.totals) != heads or any(
        len(array) != heads * width for array in (table.successors, table.counts)
    ):
        raise WireError("successor table: its arrays have different lengths")
    table = SuccessorTable(
        table.heads, table.totals, table.successors.reshape(-1, width), table.counts.reshape(-1, width)
    )
    _check(table, vocab_size)
    return table


def _check(table: SuccessorTable, vocab_size: int) -> None:
    heads, successors = table.heads, table.successors
    if heads.min(initial=0) < 0 or heads.max(initial=0) >= vocab_size:
        raise WireError(f"successor table: heads outside the vocabulary of {vocab_size}")
    if successors.min(initial=0) < ABSENT or successors.max(initial=0) >= vocab_size:
        raise WireError(f"successor table: successors outside the vocabulary of {vocab_size}")
    if len(np.unique(heads)) != len(heads):
        raise WireError("successor table: a head comes twice")
    ordered = np.sort(successors, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT)).any():
        raise WireError("successor table: a successor of one head comes twice")
    for name, numbers in (("totals", table.totals), ("counts", table.counts)):
        if not np.isfinite(numbers).all() or numbers.min(initial=0.0) < 0:
            raise WireError(f"successor table: {name} hold a number that is negative or not finite")
    if ((table.counts > 0) != (successors != ABSENT)).any():
        raise WireError("successor table: counts and successors are not in the same places")
    if (table.totals <= 0).any():
        raise WireError("successor table: a head was never seen")


def _arrays(table: SuccessorTable) -> dict[str, np.ndarray]:
    return {
        "heads": table.heads,
        "totals": table.totals,
        "successors": table.successors,
        "counts": table.counts,
    }


def _open(blob: bytes, largest: int) -> bytes:
    envelope = _unpack(blob, largest)
    if not isinstance(envelope, list) or len(envelope) != 3:
        raise WireError("successor table has no envelope of schema, checksum and payload")
    schema, checksum, payload = envelope
    if type(schema) is not int or schema != SUCCESSOR_SCHEMA:
        raise WireError(f"successor table has another schema, this program reads {SUCCESSOR_SCHEMA}")
    if not isinstance(payload, bytes) or type(checksum) is not int or zlib.crc32(payload) != checksum:
        raise WireError("successor table is damaged: its checksum does not match")
    return payload


def _unpack(packed: bytes, largest: int) -> object:
    try:
        return msgpack.unpackb(
            packed,
            max_bin_len=largest,
            max_str_len=_LONGEST_STRING,
            max_array_len=3,
            max_map_len=len(_ARRAYS) + 2,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException):
        # msgpack's own messages can hold arbitrary bytes of the blob.
        raise WireError("successor table is not valid msgpack within its limits") from None


def _array(name: str, content: object) -> np.ndarray:
    dtype = _ARRAYS[name]
    if not isinstance(content, bytes) or len(content) % dtype.itemsize:
        raise WireError(f"successor table: {name} is not an array of {dtype.name}")
    return np.frombuffer(content, dtype=dtype)
