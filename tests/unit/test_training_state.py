"""The training state's codec: exact for what a trainer writes, a clear refusal for everything else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from evospec.align.random_state import RandomState
from evospec.align.replay import ReplaySummary
from evospec.align.training_state import MAX_HEADER_BYTES, MAX_UPDATES, Moments, TrainingState
from evospec.errors import WireError

SHAPES = {"fc.lora_a": torch.Size((2, 5)), "fc.lora_b": torch.Size((3, 2))}
COUNT = st.integers(0, 2**53)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def random_moments(draw: st.DrawFn, shape: torch.Size) -> Moments:
    size = shape.numel()
    mean, square = (
        torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)
        for values in (FLOATS, FLOATS.map(abs))
    )
    return Moments(draw(st.integers(1, MAX_UPDATES)), mean, square)


@st.composite
def states(draw: st.DrawFn) -> TrainingState:
    training, held_out = draw(COUNT), draw(COUNT)
    summary = ReplaySummary(
        training=training,
        held_out=held_out,
        degenerate=draw(COUNT),
        unscored=draw(COUNT),
        discarded=draw(st.integers(0, min(training, 2**52))),
        random=RandomState.of(np.random.default_rng(draw(st.integers(0, 2**64)))),
    )
    stepped = draw(st.booleans())
    return TrainingState(
        version=draw(st.integers(1, 2**53)),
        steps=draw(COUNT),
        skipped_steps=draw(COUNT),
        replay=summary,
        moments={name: draw(random_moments(shape)) for name, shape in SHAPES.items()} if stepped else {},
        cut=draw(st.lists(st.integers(0, 63), max_size=3)),
    )


def example() -> TrainingState:
    rng = torch.Generator().manual_seed(0)
    return TrainingState(
        version=4,
        steps=12,
        skipped_steps=1,
        replay=ReplaySummary(
            training=9,
            held_out=3,
            degenerate=1,
            unscored=2,
            discarded=1,
            random=RandomState.of(np.random.default_rng(0)),
        ),
        moments={
            name: Moments(12, torch.randn(shape, generator=rng), torch.rand(shape, generator=rng))
            for name, shape in SHAPES.items()
        },
    )


def header_of(blob: bytes) -> dict[str, object]:
    length = int.from_bytes(blob[:8], "little")
    header: dict[str, object] = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["training_state"])
    return header


def rewritten(changes: dict[str, object], tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    """The example with header fields and tensors replaced; None takes one out."""
    written = {
        name + suffix: tensor
        for name, found in example().moments.items()
        for suffix, tensor in ((".exp_avg", found.mean), (".exp_avg_sq", found.square))
    }
    header = {**header_of(example().to_bytes()), **changes}
    text = json.dumps({name: value for name, value in header.items() if value is not None})
    return bytes(save({**written, **(tensors or {})}, metadata={"training_state": text}))


def same(left: TrainingState, right: TrainingState) -> bool:
    return replace(left, moments={}) == replace(right, moments={}) and all(
        mine.updates == theirs.updates
        and torch.equal(mine.mean, theirs.mean)
        and torch.equal(mine.square, theirs.square)
        for mine, theirs in zip(left.moments.values(), right.moments.values(), strict=True)
    )


def outcome(blob: bytes) -> TrainingState | WireError:
    try:
        return TrainingState.from_bytes(blob, [SHAPES])
    except WireError as error:
        return error


@given(states())
def test_round_trip_is_exact(state: TrainingState) -> None:
    assert same(TrainingState.from_bytes(state.to_bytes(), [SHAPES]), state)


@settings(max_examples=500)
@given(position=st.integers(0), flip=st.integers(1, 255))
def test_damage_is_refused_or_harmless(position: int, flip: int) -> None:
    """A flipped bit in a moment can't be told from another moment; nothing else passes, or crashes."""
    blob = bytearray(example().to_bytes())
    position %= len(blob)
    blob[position] ^= flip
    found = outcome(bytes(blob))
    if isinstance(found, WireError):
        assert "\n" not in str(found)
        return
    for moments in found.moments.values():
        assert torch.isfinite(moments.mean).all()
        assert (moments.square >= 0).all()


@settings(max_examples=300)
@given(st.binary(max_size=400) | st.integers(0).map(lambda cut: example().to_bytes()[: cut % 2000]))
def test_other_bytes_are_wire_errors(blob: bytes) -> None:
    if blob != example().to_bytes():
        with pytest.raises(WireError):
            TrainingState.from_bytes(blob, [SHAPES])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": None}, "schema"),
        ({"version": 0}, "version"),
        ({"version": "4"}, "version"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": 10**400}, "steps"),
        ({"skipped_steps": True}, "skipped_steps"),
        ({"unknown": 1}, "unknown"),
        ({"two\nlines": 1}, "two lines"),
        ({"replay": {}}, "replay"),
        ({"updates": {"fc.lora_a": 12}}, "other parameters"),
        ({"updates": {"fc.lora_a": 12, "fc.lora_b": 12, "fc.lora_c": 12}}, "fc.lora_c"),
        ({"updates": {"fc.lora_a": 12, "fc.lora_b": 0}}, "0 updates of fc.lora_b"),
        ({"updates": {"fc.lora_a": 12, "fc.lora_b": 2**30}}, "updates of fc.lora_b"),
        ({"updates": {}}, "two moments"),
        ({"credits": [0.0, math.nan]}, "credits"),
        ({"credits": ["1"]}, "credits"),
    ],
)
def test_odd_headers_are_refused(changes: dict[str, object], message: str) -> None:
    assert same(TrainingState.from_bytes(rewritten({}), [SHAPES]), example())
    with pytest.raises(WireError, match=message):
        TrainingState.from_bytes(rewritten(changes), [SHAPES])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fc.lora_a.exp_avg", lambda tensor: tensor * torch.nan, "mean of fc.lora_a holds NaN"),
        ("fc.lora_a.exp_avg_sq", lambda tensor: tensor * torch.inf, "square of fc.lora_a holds NaN"),
        ("fc.lora_b.exp_avg_sq", lambda tensor: -tensor, "square of fc.lora_b is negative"),
        ("fc.lora_b.exp_avg", lambda tensor: tensor.double(), "float64"),
        ("fc.lora_b.exp_avg", lambda tensor: tensor.T.contiguous(), r"expected float32 \[3, 2\]"),
        ("fc.lora_b.exp_avg", lambda tensor: tensor[:0], r"\[0, 2\]"),
        ("fc.lora_c.exp_avg", lambda _: torch.zeros(2), "two moments for each"),
    ],
)
def test_odd_moments_are_refused(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    good = {
        "fc.lora_a.exp_avg": example().moments["fc.lora_a"].mean,
        "fc.lora_a.exp_avg_sq": example().moments["fc.lora_a"].square,
        "fc.lora_b.exp_avg": example().moments["fc.lora_b"].mean,
        "fc.lora_b.exp_avg_sq": example().moments["fc.lora_b"].square,
        "fc.lora_c.exp_avg": torch.zeros(0),
    }
    with pytest.raises(WireError, match=message):
        TrainingState.from_bytes(rewritten({}, {name: change(good[name])}), [SHAPES])


def test_weights_and_credits_of_several_students_round_trip() -> None:
    """One that has made steps, and one that has not."""
    students = [{f"kinds.{kind}.{name}": shape for name, shape in SHAPES.items()} for kind in range(2)]
    moments = {f"kinds.1.{name}": found for name, found in example().moments.items()}
    weights = {"kinds.1.fc.lora_a": torch.randn(SHAPES["fc.lora_a"])}
    state = replace(example(), moments=moments, weights=weights, credits=[0.5, -1.25])
    again = TrainingState.from_bytes(state.to_bytes(), students)
    assert same(replace(again, weights={}), replace(state, weights={}))
    assert again.weights.keys() == weights.keys()
    assert torch.equal(again.weights["kinds.1.fc.lora_a"], weights["kinds.1.fc.lora_a"])
    part = dict(list(moments.items())[:1])
    with pytest.raises(WireError, match="other parameters"):
        TrainingState.from_bytes(replace(state, moments=part).to_bytes(), students)
    with pytest.raises(WireError, match="other parameters"):
        TrainingState.from_bytes(state.to_bytes(), students[:1])


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("fc.lora_a", torch.full(SHAPES["fc.lora_a"], torch.nan), "fc.lora_a is not finite float32"),
        ("fc.lora_a", torch.zeros(SHAPES["fc.lora_a"]).double(), "fc.lora_a is not finite float32"),
        ("fc.lora_a", torch.zeros(1, 1), "fc.lora_a is not finite float32"),
        ("fc.lora_c", torch.zeros(1, 1), "other parameters"),
    ],
)
def test_odd_weights_are_refused(name: str, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(WireError, match=message):
        TrainingState.from_bytes(rewritten({}, {f"{name}.weights": weight}), [SHAPES])


def test_more_traces_discarded_than_admitted_is_odd() -> None:
    replay = json.loads(example().replay.model_dump_json())
    with pytest.raises(WireError, match="more traces were discarded"):
        TrainingState.from_bytes(rewritten({"replay": {**replay, "discarded": 13}}), [SHAPES])


def test_tensors_that_are_not_a_training_state_are_refused() -> None:
    with pytest.raises(WireError, match="not a training state"):
        TrainingState.from_bytes(bytes(save({"fc.lora_a": torch.zeros(2, 5)})), [SHAPES])


def test_size_is_checked_before_anything_is_read() -> None:
    values = 3 * 4 * sum(shape.numel() for shape in SHAPES.values())
    with pytest.raises(WireError, match=f"at most {values + MAX_HEADER_BYTES}"):
        TrainingState.from_bytes(bytes(values + MAX_HEADER_BYTES + 1), [SHAPES])


@given(seed=st.integers(0, 2**64), drawn=st.integers(0, 5))
def test_a_generator_goes_on_where_another_was(seed: int, drawn: int) -> None:
    first, second = np.random.default_rng(seed), np.random.default_rng(1)
    for _ in range(drawn):
        first.integers(0, 100, dtype=np.uint32)  # leaves half of a 64-bit draw behind
    RandomState.of(first).apply(second)
    assert (
        first.integers(0, 100, 5, dtype=np.uint32).tolist()
        == second.integers(0, 100, 5, dtype=np.uint32).tolist()
    )
    assert first.random() == second.random()
