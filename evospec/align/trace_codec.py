"""Traces as bytes: msgpack, size-capped before anything is unpacked, checked before anything is believed.

A blob is the msgpack array [schema, CRC-32 of payload, payload]; the payload is a
msgpack map whose arrays are little-endian bytes. Shapes follow from the limits that
both ends share, so none travels.
"""

from __future__ import annotations

import re
import zlib

import msgpack
import numpy as np

from evospec.align.trace import TRACE_SCHEMA, Trace
from evospec.align.trace_check import check
from evospec.align.trace_limits import BOOL, DTYPES, Form, TraceLimits, arrays_of, dtypes_of, forms_of
from evospec.errors import WireError
from evospec.vocab.tenants import KEY_DIGITS
from evospec.wire import Fingerprints

_LONGEST_STRING = 128
_LONGEST_INTEGER = 2**63 - 1
_FIELDS = frozenset(
    ("fingerprints", "tenant", "adapter_version", "vocabulary_epoch", "prompt_length", "start", *DTYPES)
)
_TENANT = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


def encode(trace: Trace) -> bytes:
    """Serialises a trace; what is encoded is what `decode` will judge."""
    names = trace.fingerprints
    dtypes = dtypes_of(trace.is_quantised)
    payload = msgpack.packb(
        {
            "fingerprints": [names.target, names.drafter, names.tokenizer],
            "tenant": trace.tenant,
            "adapter_version": trace.adapter_version,
            "vocabulary_epoch": trace.vocabulary_epoch,
            "prompt_length": trace.prompt_length,
            "start": trace.start,
            **{
                name: np.ascontiguousarray(array, dtype=dtypes[name]).tobytes()
                for name, array in arrays_of(trace).items()
            },
        }
    )
    blob: bytes = msgpack.packb([TRACE_SCHEMA, zlib.crc32(payload), payload])
    return blob


def decode(blob: bytes, limits: TraceLimits) -> Trace:
    """Reads a trace; its arrays are read-only and own exactly their bytes.

    Raises:
        WireError: too long, damaged, another schema, or a trace that `check` refuses.
    """
    if len(blob) > limits.max_bytes:
        raise WireError(f"trace has {len(blob)} bytes, at most {limits.max_bytes} are taken")
    fields = _unpack(_open_envelope(blob, limits), limits)
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise WireError("trace is not a map of this schema's fields")
    width = _width(fields["generated"])
    # Features without scales are bfloat16, whatever they are: what they can't be is refused.
    forms = forms_of(width, _past(fields["past"], limits), limits, scaled=bool(fields["feature_scales"]))
    arrays = {name: _array(name, fields[name], form) for name, form in forms.items()}
    trace = Trace(
        fingerprints=_fingerprints(fields["fingerprints"]),
        tenant=_tenant(fields["tenant"]),
        adapter_version=_number("adapter_version", fields["adapter_version"]),
        vocabulary_epoch=_number("vocabulary_epoch", fields["vocabulary_epoch"]),
        prompt_length=_number("prompt_length", fields["prompt_length"]),
        start=_number("start", fields["start"]),
        token_ids=arrays["token_ids"],
        features=arrays["features"],
        top_ids=arrays["top_ids"],
        top_logprobs=arrays["top_logprobs"],
        generated=arrays["generated"],
        draft_position=arrays["draft_position"],
        accepted=arrays["accepted"],
        missed=arrays["missed"],
        past=arrays["past"],
        context=arrays["context"],
        feature_scales=arrays["feature_scales"],
    )
    check(trace, limits)
    return trace


def _open_envelope(blob: bytes, limits: TraceLimits) -> bytes:
    envelope = _unpack(blob, limits)
    if not isinstance(envelope, list) or len(envelope) != 3:
        raise WireError("trace is not an array of schema, checksum and payload")
    schema, checksum, payload = envelope
    if schema != TRACE_SCHEMA:
        raise WireError(f"trace has schema {schema!r}, this program reads {TRACE_SCHEMA}")
    if not isinstance(payload, bytes) or zlib.crc32(payload) != checksum:
        raise WireError("trace does not match its checksum: it was damaged on the way")
    return payload


def _unpack(blob: bytes, limits: TraceLimits) -> object:
    """Lengths are bounded in every header, so a forged one can't make msgpack allocate."""
    try:
        return msgpack.unpackb(
            blob,
            raw=False,
            strict_map_key=True,
            max_str_len=_LONGEST_STRING,
            max_bin_len=limits.max_bytes,
            max_array_len=8,
            max_map_len=len(_FIELDS),
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        detail = " ".join(str(error).split())[:200]
        raise WireError(f"trace is not valid msgpack: {detail or type(error).__name__}") from None


def _width(generated: object) -> int:
    if not isinstance(generated, bytes):
        raise WireError(f"trace: generated is {type(generated).__name__}, expected bytes")
    return len(generated)


def _past(data: object, limits: TraceLimits) -> int:
    """Pairs that the bytes are of; what is no whole number of them is refused with all other shapes."""
    return len(data) // limits.pair_bytes if isinstance(data, bytes) else 0


def _array(name: str, data: object, form: Form) -> np.ndarray:
    dtype, shape = form.dtype, form.shape
    if not isinstance(data, bytes):
        raise WireError(f"trace: {name} is {type(data).__name__}, expected bytes")
    if len(data) != form.nbytes:
        raise WireError(f"trace: {name} has {len(data)} bytes, {form.nbytes} make shape {shape}")
    if dtype == BOOL:
        flags = np.frombuffer(data, dtype=np.uint8)
        if (flags > 1).any():
            raise WireError(f"trace: {name} holds values that are neither true nor false")
        return flags.view(np.bool_).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _number(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LONGEST_INTEGER:
        raise WireError(f"trace: {name} is {value!r:.40}, expected a non-negative integer")
    return value


def _tenant(value: object) -> str:
    if not isinstance(value, str) or not _TENANT.fullmatch(value):
        raise WireError(f"trace: tenant is {value!r:.40}, expected {KEY_DIGITS} hex digits")
    return value


def _fingerprints(value: object) -> Fingerprints:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(name, str) for name in value):
        raise WireError("trace: fingerprints are not three strings")
    target, drafter, tokenizer = value
    return Fingerprints(target=target, drafter=drafter, tokenizer=tokenizer)
