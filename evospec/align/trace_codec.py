"""Traces as bytes: msgpack, size-capped before anything is unpacked, checked before anything is believed.

A blob is the msgpack array [schema, CRC-32 of payload, payload]; the payload is a
msgpack map whose arrays are little-endian bytes. Shapes follow from the limits that
both ends share, so none travels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgpack
import numpy as np

from evospec.align.trace import TRACE_SCHEMA, Trace
from evospec.errors import WireError
from evospec.vocab.tenants import KEY_DIGITS
from evospec.wire import Fingerprints

_OVERHEAD = 2048  # keys, headers, fingerprints
_LONGEST_STRING = 128
_LONGEST_INTEGER = 2**63 - 1
_PROBABILITY_SLACK = 1.01  # float16 rounds each log-probability

_INT32 = np.dtype("<i4")
_UINT16 = np.dtype("<u2")
_FLOAT32 = np.dtype("<f4")
_FLOAT16 = np.dtype("<f2")
_INT8 = np.dtype("i1")
_BOOL = np.dtype("?")

_DTYPES: Mapping[str, np.dtype] = {
    "token_ids": _INT32,
    "features": _UINT16,
    "top_ids": _INT32,
    "top_logprobs": _FLOAT16,
    "generated": _BOOL,
    "draft_position": _INT8,
    "accepted": _BOOL,
    "missed": _BOOL,
    "past": _UINT16,
    "feature_scales": _FLOAT32,
}
_LARGEST_SCALE = float(np.finfo(np.float32).max) / 128  # no int8 feature overflows
_FIELDS = frozenset(
    ("fingerprints", "tenant", "adapter_version", "vocabulary_epoch", "prompt_length", "start", *_DTYPES)
)
_TENANT = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class TraceLimits:
    """What a trace must look like to be of use to one drafter.

    Attributes:
        vocab_size: token ids are below it.
        feature_size: taps * hidden of the drafter.
        top_k: target tokens per position, exactly.
        max_positions: widest window.
        kv_heads, head_dim: of the drafter's attention.
        max_past: most pairs before a window.
        max_length: positions of the drafter, which a window ends within.
        fingerprints: target, drafter and tokenizer it must come from.
    """

    vocab_size: int
    feature_size: int
    top_k: int
    max_positions: int
    kv_heads: int
    head_dim: int
    max_past: int
    max_length: int
    fingerprints: Fingerprints

    @property
    def max_bytes(self) -> int:
        """Length of the largest valid blob, rounded up."""
        widest, longest = self.max_positions, self.max_past
        forms = (_forms(widest, longest, self, scaled) for scaled in (False, True))
        return max(sum(form.nbytes for form in each.values()) for each in forms) + _OVERHEAD

    @property
    def pair_bytes(self) -> int:
        """Of a pair's key and value."""
        return 2 * self.kv_heads * self.head_dim * _UINT16.itemsize


def encode(trace: Trace) -> bytes:
    """Serialises a trace; what is encoded is what `decode` will judge."""
    names = trace.fingerprints
    dtypes = _dtypes(trace.is_quantised)
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
                for name, array in _arrays(trace).items()
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
    forms = _forms(width, _past(fields["past"], limits), limits, scaled=bool(fields["feature_scales"]))
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
        feature_scales=arrays["feature_scales"],
    )
    check(trace, limits)
    return trace


def check(trace: Trace, limits: TraceLimits) -> None:
    """Raises WireError unless shapes, types and contents are those of a usable trace."""
    if trace.fingerprints != limits.fingerprints:
        raise WireError(
            f"trace comes from ({trace.fingerprints}), this aligner serves ({limits.fingerprints})"
        )
    if not 1 <= trace.width <= limits.max_positions:
        raise WireError(f"trace has {trace.width} positions, 1 to {limits.max_positions} are taken")
    if trace.past_pairs > min(limits.max_past, trace.start):
        raise WireError(
            f"trace: past has {trace.past_pairs} pairs, before position {trace.start} at most "
            f"{min(limits.max_past, trace.start)} are taken"
        )
    if trace.start + trace.width > limits.max_length:
        raise WireError(
            f"trace ends at position {trace.start + trace.width}, the drafter has {limits.max_length}"
        )
    forms = _forms(trace.width, trace.past_pairs, limits, trace.is_quantised)
    for name, array in _arrays(trace).items():
        form = forms[name]
        if array.dtype != form.dtype or array.shape != form.shape:
            raise WireError(
                f"trace: {name} is {array.dtype} {array.shape}, expected {form.dtype} {form.shape}"
            )
    for name, ids in (("token_ids", trace.token_ids), ("top_ids", trace.top_ids)):
        if ids.min() < 0 or ids.max() >= limits.vocab_size:
            raise WireError(f"trace: {name} holds ids outside the vocabulary of {limits.vocab_size}")
    if trace.is_quantised:
        scales = trace.feature_scales
        if not ((scales >= 0) & (scales <= _LARGEST_SCALE)).all():
            raise WireError("trace: feature_scales hold NaN, or what is negative or too large")
    elif not finite_bfloat16(trace.features):
        raise WireError("trace: features hold NaN or infinity")
    if not finite_bfloat16(trace.past):
        raise WireError("trace: past holds NaN or infinity")
    _check_targets(trace)
    if trace.draft_position.min() < -1 or (trace.accepted & (trace.draft_position < 0)).any():
        raise WireError("trace: an accepted token has no place in a draft")


def finite_bfloat16(bits: np.ndarray) -> bool:
    """Whether bfloat16 bit patterns (uint16, any shape) are all finite: the exponent is not all ones."""
    return int((bits & 0x7FFF).max(initial=0)) < 0x7F80


def _check_targets(trace: Trace) -> None:
    logprobs = trace.top_logprobs.astype(np.float32)  # [width, k]
    if not np.isfinite(logprobs).all():
        raise WireError("trace: top_logprobs hold NaN or infinity")
    if logprobs.max(initial=0.0) > 0.01:
        raise WireError(f"trace: top_logprobs reach {logprobs.max():.3g}, log-probabilities are at most 0")
    scored = trace.generated
    if (np.exp(logprobs[scored]).sum(axis=-1) > _PROBABILITY_SLACK).any():
        raise WireError("trace: the probabilities of a position's top tokens exceed 1")
    ordered = np.sort(trace.top_ids[scored], axis=-1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise WireError("trace: a position names the same top token twice")


def _arrays(trace: Trace) -> dict[str, np.ndarray]:
    return {
        "token_ids": trace.token_ids,
        "features": trace.features,
        "top_ids": trace.top_ids,
        "top_logprobs": trace.top_logprobs,
        "generated": trace.generated,
        "draft_position": trace.draft_position,
        "accepted": trace.accepted,
        "missed": trace.missed,
        "past": trace.past,
        "feature_scales": trace.feature_scales,
    }


@dataclass(frozen=True, slots=True)
class _Form:
    """What an array must be."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _dtypes(scaled: bool) -> dict[str, np.dtype]:
    """Of all arrays; features are bfloat16 unless there are scales."""
    return {**_DTYPES, "features": _INT8 if scaled else _UINT16}


def _forms(width: int, past: int, limits: TraceLimits, scaled: bool) -> dict[str, _Form]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_ids": (width + 1,),
        "features": (width, limits.feature_size),
        "top_ids": (width, limits.top_k),
        "top_logprobs": (width, limits.top_k),
        "generated": (width,),
        "draft_position": (width,),
        "accepted": (width,),
        "missed": (width,),
        "past": (2, limits.kv_heads, past, limits.head_dim),
        "feature_scales": (limits.feature_size if scaled else 0,),
    }
    dtypes = _dtypes(scaled)
    return {name: _Form(dtypes[name], shape) for name, shape in shapes.items()}


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


def _array(name: str, data: object, form: _Form) -> np.ndarray:
    dtype, shape = form.dtype, form.shape
    if not isinstance(data, bytes):
        raise WireError(f"trace: {name} is {type(data).__name__}, expected bytes")
    if len(data) != form.nbytes:
        raise WireError(f"trace: {name} has {len(data)} bytes, {form.nbytes} make shape {shape}")
    if dtype == _BOOL:
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
