"""The trace codec: exact for every valid trace, a clear refusal for everything else."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evospec.align.int8_features import quantised
from evospec.align.trace import TRACE_SCHEMA, Trace
from evospec.align.trace_check import check, finite_bfloat16
from evospec.align.trace_codec import decode, encode
from evospec.align.trace_limits import TraceLimits
from evospec.errors import WireError
from evospec.vocab.tenants import tenant_key
from evospec.wire import Fingerprints
from tests.unit.align_tiny import (
    ARRAYS,
    FINGERPRINTS,
    LENGTH,
    LIMITS,
    NO_PAST,
    PAST,
    POSITIONS,
    VOCAB,
    random_trace,
    traces_equal,
    unit_bits,
)

SMALL = TraceLimits(
    vocab_size=1000,
    feature_size=6,
    top_k=3,
    max_positions=12,
    kv_heads=2,
    head_dim=3,
    context_size=4,
    max_past=5,
    max_length=2**20,
    fingerprints=FINGERPRINTS,
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    width = draw(st.integers(1, SMALL.max_positions))
    finite = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)
    ids = st.integers(0, SMALL.vocab_size - 1)
    flags = hnp.arrays(np.bool_, width)
    tops = [draw(st.lists(ids, min_size=3, max_size=3, unique=True)) for _ in range(width)]
    start = draw(st.integers(0, SMALL.max_length - width))
    past = (2, 2, draw(st.integers(0, min(start, SMALL.max_past))), 3)
    position = draw(hnp.arrays(np.int8, width, elements=st.integers(-1, 15)))
    return Trace(
        fingerprints=FINGERPRINTS,
        adapter_version=draw(st.integers(0, 2**63 - 1)),
        vocabulary_epoch=draw(st.integers(0, 2**40)),
        tenant=tenant_key(draw(st.text(max_size=5))),
        prompt_length=draw(st.integers(0, 2**20)),
        start=start,
        token_ids=draw(hnp.arrays(np.int32, width + 1, elements=ids)),
        features=draw(hnp.arrays(np.uint16, (width, 6), elements=finite)),
        top_ids=np.array(tops, dtype=np.int32),
        top_logprobs=draw(hnp.arrays(np.float16, (width, 3), elements=st.floats(-60_000, -1.125, width=16))),
        generated=draw(flags),
        draft_position=position,
        accepted=draw(flags) & (position >= 0),
        missed=draw(flags),
        past=draw(hnp.arrays(np.uint16, past, elements=finite)),
        context=unit_bits(draw(hnp.arrays(np.float64, 4, elements=st.floats(0.01, 10)))),
    )


@given(traces())
def test_int8_features_are_within_half_a_step_and_round_trip(trace: Trace) -> None:
    small = quantised(trace)
    numbers, close = trace.float_features(), small.float_features()
    assert (np.abs(close - numbers) <= 0.501 * np.abs(numbers).max(axis=0) / 127 + 1e-44).all()
    again = decode(encode(small), SMALL)
    assert traces_equal(again, small)
    assert len(encode(small)) <= SMALL.max_bytes


def test_int8_features_take_half_the_bytes() -> None:
    trace = replace(random_trace(0, width=POSITIONS), past=NO_PAST)
    assert trace.nbytes - quantised(trace).nbytes > 0.45 * trace.features.nbytes


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 3e38])
def test_scales_that_could_overflow_are_refused(scale: float) -> None:
    trace = quantised(random_trace(0))
    scales = trace.feature_scales.copy()
    scales[2] = scale
    with pytest.raises(WireError, match="feature_scales hold NaN, or what is negative or too large"):
        decode(encode(replace(trace, feature_scales=scales)), LIMITS)


def repacked(blob: bytes, **changes: object) -> bytes:
    """The blob with payload fields replaced, and a checksum that fits."""
    schema, _, payload = msgpack.unpackb(blob)
    fields = {**msgpack.unpackb(payload), **changes}
    payload = msgpack.packb({name: value for name, value in fields.items() if value is not None})
    return msgpack.packb([schema, zlib.crc32(payload), payload])


@given(traces())
def test_round_trip_is_exact(trace: Trace) -> None:
    blob = encode(trace)
    assert len(blob) <= SMALL.max_bytes
    assert traces_equal(decode(blob, SMALL), trace)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(WireError):
        decode(blob, SMALL)


@given(traces(), st.data())
def test_truncated_traces_are_refused(trace: Trace, data: st.DataObject) -> None:
    blob = encode(trace)
    with pytest.raises(WireError):
        decode(blob[: data.draw(st.integers(0, len(blob) - 1))], SMALL)


@given(traces(), st.data())
def test_flipped_bits_are_noticed(trace: Trace, data: st.DataObject) -> None:
    blob = bytearray(encode(trace))
    for bit in data.draw(st.lists(st.integers(0, len(blob) * 8 - 1), min_size=1, max_size=3, unique=True)):
        blob[bit // 8] ^= 1 << bit % 8
    try:
        damaged = decode(bytes(blob), SMALL)
    except WireError:
        return
    assert traces_equal(damaged, trace)  # msgpack has several ways to write one number


def test_every_single_flipped_bit_of_the_payload_is_noticed() -> None:
    whole = encode(random_trace(0, width=2))
    payload = len(msgpack.unpackb(whole)[2])
    for bit in range(8 * (len(whole) - payload), 8 * len(whole)):
        blob = bytearray(whole)
        blob[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode(bytes(blob), LIMITS)


@given(
    st.dictionaries(
        st.sampled_from(["start", "features", "context", "generated", "top_ids", "fingerprints", "accepted"]),
        st.one_of(st.none(), st.integers(-5, 5), st.binary(max_size=80), st.text(max_size=5), st.booleans()),
        min_size=1,
    )
)
def test_forged_fields_are_refused_or_consistent(changes: dict[str, object]) -> None:
    """With a checksum that fits, only the checks behind it are left."""
    blob = repacked(encode(random_trace(0, width=8)), **changes)
    try:
        accepted = decode(blob, LIMITS)
    except WireError:
        return
    check(accepted, LIMITS)
    assert changes.keys() <= {"start", "accepted"}


@settings(max_examples=50)
@given(st.integers(0, 255).filter(lambda number: number != TRACE_SCHEMA))
def test_other_schemas_are_refused_by_number(schema: int) -> None:
    _, checksum, payload = msgpack.unpackb(encode(random_trace(0)))
    with pytest.raises(WireError, match=f"schema {schema}"):
        decode(msgpack.packb([schema, checksum, payload]), LIMITS)


def test_long_blob_is_refused_before_it_is_read() -> None:
    blob = bytes(50_000_000)
    tracemalloc.start()
    with pytest.raises(WireError, match="50000000 bytes"):
        decode(blob, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    "header",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ],
    ids=["array", "map", "bin", "str", "ext"],
)
def test_forged_lengths_allocate_nothing(header: bytes) -> None:
    tracemalloc.start()
    for blob in (header, b"\x93\x01\x02" + header, header * 20):
        with pytest.raises(WireError):
            decode(blob, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError):
        decode(b"\x91" * (LIMITS.max_bytes - 1) + b"\x00", LIMITS)


@pytest.mark.parametrize(
    ("field", "make", "reason"),
    [
        (
            "features",
            lambda t: np.where(t.features == t.features[3, 5], 0x7FC0, t.features),
            "NaN or infinity",
        ),
        (
            "features",
            lambda t: np.where(t.features == t.features[0, 0], 0xFF80, t.features),
            "NaN or infinity",
        ),
        ("features", lambda t: t.features[:, :-1], "features has .* bytes"),
        ("token_ids", lambda t: t.token_ids[:-1], "token_ids has .* bytes"),
        ("token_ids", lambda t: t.token_ids - VOCAB, "token_ids holds ids outside the vocabulary"),
        ("top_ids", lambda t: t.top_ids + VOCAB, "top_ids holds ids outside the vocabulary"),
        ("top_ids", lambda t: t.top_ids * 0, "same top token twice"),
        ("top_logprobs", lambda t: t.top_logprobs * np.float16("nan"), "top_logprobs hold NaN"),
        ("top_logprobs", lambda t: t.top_logprobs - np.float16("inf"), "top_logprobs hold NaN"),
        ("top_logprobs", lambda t: t.top_logprobs * 0 + 1, "log-probabilities are at most 0"),
        ("top_logprobs", lambda t: t.top_logprobs * 0, "exceed 1"),
        ("past", lambda t: np.where(t.past == t.past[1, 1, 3, 2], 0x7F80, t.past), "past holds NaN"),
        ("past", lambda t: np.tile(t.past, (1, 1, 2, 1)), "past has 14 pairs, before position 7 at most 7"),
        ("past", lambda t: t.past[:, :, :, :-1], "past has .* bytes"),
        ("context", lambda t: np.where(t.context == t.context[3], 0x7F80, t.context), "context holds NaN"),
        ("context", lambda t: t.context - 0x80, r"context has length 0\.[45]\d*, expected 1"),
        ("context", lambda t: t.context * 0, "context has length 0, expected 1"),
        ("context", lambda t: t.context[1:], "context has .* bytes"),
        ("draft_position", lambda t: t.draft_position * 0 - 2, "no place in a draft"),
        ("accepted", lambda t: t.draft_position < 0, "no place in a draft"),
    ],
)
def test_wrong_contents_are_named(field: str, make: Callable[[Trace], np.ndarray], reason: str) -> None:
    trace = random_trace(1)
    with pytest.raises(WireError, match=reason):
        decode(encode(replace(trace, **{field: make(trace)})), LIMITS)


def test_flags_are_zero_or_one() -> None:
    trace = random_trace(1)
    with pytest.raises(WireError, match="neither true nor false"):
        decode(repacked(encode(trace), missed=b"\x02" * trace.width), LIMITS)


def test_empty_trace_is_refused() -> None:
    empty = random_trace(0, width=1)
    rows = {name: getattr(empty, name)[:0] for name in ARRAYS[1:] if name != "context"}
    empty = replace(empty, token_ids=empty.token_ids[:1], **rows)
    with pytest.raises(WireError, match="0 positions"):
        decode(encode(empty), LIMITS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start": -1}, "start is -1"),
        ({"start": True}, "start is True"),
        ({"adapter_version": 2**63}, "adapter_version"),
        ({"prompt_length": -1}, "prompt_length is -1"),
        ({"tenant": "a"}, "tenant is 'a', expected 32 hex digits"),
        ({"tenant": "A" * 32}, "expected 32 hex digits"),
        ({"tenant": b"0" * 32}, "expected 32 hex digits"),
        ({"fingerprints": ["a", "b"]}, "three strings"),
        ({"fingerprints": ["a", "b", "c"]}, "this aligner serves"),
        ({"features": "text"}, "features is str"),
        ({"missed": None}, "fields"),
        ({"extra": 1}, "fields|msgpack"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(repacked(encode(random_trace(1)), **changes), LIMITS)


def test_wider_than_the_limit_is_refused() -> None:
    with pytest.raises(WireError, match=f"{POSITIONS + 1} positions"):
        decode(encode(random_trace(0, width=POSITIONS + 1)), LIMITS)


def test_more_past_than_asked_for_is_refused() -> None:
    trace = replace(random_trace(0), start=100)
    long = replace(trace, past=np.tile(trace.past, (1, 1, 10, 1)))
    with pytest.raises(WireError, match=f"past has 70 pairs, before position 100 at most {PAST}"):
        decode(encode(long), LIMITS)


def test_what_ends_behind_the_drafters_positions_is_refused() -> None:
    trace = random_trace(0)
    decode(encode(replace(trace, start=LENGTH - trace.width)), LIMITS)
    with pytest.raises(WireError, match=f"ends at position {LENGTH + 1}, the drafter has {LENGTH}"):
        decode(encode(replace(trace, start=LENGTH - trace.width + 1)), LIMITS)


def test_traces_of_another_target_are_refused() -> None:
    other = replace(random_trace(0), fingerprints=Fingerprints(target="x", drafter="y", tokenizer="z"))
    with pytest.raises(WireError, match="comes from"):
        decode(encode(other), LIMITS)


def test_check_looks_at_dtypes() -> None:
    trace = random_trace(0)
    with pytest.raises(WireError, match="token_ids is int64"):
        check(replace(trace, token_ids=trace.token_ids.astype(np.int64)), LIMITS)


@given(st.integers(0, 0xFFFF))
def test_finite_bfloat16_agrees_with_float32(bits: int) -> None:
    value = np.array([bits << 16], dtype=np.uint32).view(np.float32)
    assert finite_bfloat16(np.array([bits], dtype=np.uint16)) == bool(np.isfinite(value[0]))
