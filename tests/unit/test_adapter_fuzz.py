"""Ten thousand damaged or malicious adapters: refused with a WireError, or fit to draft with."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from actors.adoption import Adoption, build_adapter
from actors.weight_follower import WeightFollower
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot
from evospec.models.deltas import adapted_linears, delta_limits
from evospec.models.drafter import Drafter
from evospec.wire import Fingerprints, Manifest, VersionedWeights
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.actors.fakes import FINGERPRINTS, FakeRegistry, versioned

BLOBS = 10_000
ODD_VALUES = (float("nan"), float("inf"), -float("inf"), 1e30, -3e38, 1e8)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "C64", "I64", "I8", "U8", "BOOL", "X7", "")
LENGTHS = (-1, 0, 1, 2, 3, 32, 96, 2**31, 2**33, 2**62, 2**63, 2**64)


@dataclass(frozen=True, slots=True)
class Fitting:
    """A drafter, an adapter that fits it, and where adapters are written."""

    drafter: Drafter
    slot: AdapterSlot
    blob: bytes
    base: dict[str, Tensor]
    limits: dict[str, float]

    def adopt(self, blob: bytes) -> None:
        """As a replica whose registry delivered `blob` under a manifest that describes it."""
        self.slot.swap(self.slot.stage(build_adapter(versioned(1, blob=blob), FINGERPRINTS, self.drafter)))

    def check(self) -> None:
        """What is in force is finite and no further from the base than an adaptation may be."""
        for name, linear in adapted_linears(self.drafter).items():
            assert torch.isfinite(linear.weight).all()
            assert (linear.weight - self.base[name]).norm() <= self.limits[name] * 1.001


@pytest.fixture(scope="module")
def fitting() -> Fitting:
    drafter = tiny_drafter(tiny_target())
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, linear in adapted_linears(drafter).items():
        outputs, inputs = linear.weight.shape
        tensors[f"{name}.lora_a"] = torch.randn(2, inputs, generator=generator) * 0.1
        tensors[f"{name}.lora_b"] = torch.randn(outputs, 2, generator=generator) * 0.1
    base = {name: linear.weight.clone() for name, linear in adapted_linears(drafter).items()}
    blob = AdapterWeights(1, tensors).to_bytes()
    return Fitting(drafter, AdapterSlot(drafter), blob, base, delta_limits(drafter))


# --- damage to bytes ---


def flip_bits(blob: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(blob)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_header_bits(blob: bytes, rng: random.Random) -> bytes:
    end = 8 + struct.unpack("<Q", blob[:8])[0]
    return flip_bits(blob[:end], rng) + blob[end:]


def cut_or_grow(blob: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return blob[: rng.randrange(len(blob))]
    return blob + rng.randbytes(rng.randint(1, 64))


def move_a_piece(blob: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.sample(range(len(blob)), 2))
    to = rng.randrange(len(blob) - (stop - start) + 1)
    rest = blob[:start] + blob[stop:]
    return rest[:to] + blob[start:stop] + rest[to:]


def make_noise(blob: bytes, rng: random.Random) -> bytes:
    noise = rng.randbytes(rng.randrange(200))
    if rng.random() < 0.5:
        return noise
    return struct.pack("<Q", rng.randrange(len(noise) + 2)) + noise


# --- lies in the header ---


def edit_header(blob: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", blob[:8])[0]
    header: dict[str, Any] = json.loads(blob[8 : 8 + length])
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([key for key in header if key != "__metadata__"])
        rng.choice((_edit_shape, _edit_dtype, _edit_offsets, _edit_name))(header, name, rng)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + blob[8 + length :]


def _edit_shape(header: dict[str, Any], name: str, rng: random.Random) -> None:
    shape = [rng.choice(LENGTHS) for _ in range(rng.choice((0, 1, 2, 2, 3, 70)))]
    if rng.random() < 0.5:
        header[name] = {**header[name], "shape": shape}
    else:  # nothing, in whatever shape
        nothing = [0, *(length for length in shape if length >= 0)]
        header["fc.lora_a" * rng.randint(0, 1)] = {"dtype": "F32", "shape": nothing, "data_offsets": [0, 0]}


def _edit_dtype(header: dict[str, Any], name: str, rng: random.Random) -> None:
    header[name] = {**header[name], "dtype": rng.choice(DTYPES)}


def _edit_offsets(header: dict[str, Any], name: str, rng: random.Random) -> None:
    header[name] = {**header[name], "data_offsets": [rng.choice(LENGTHS), rng.choice(LENGTHS)]}


def _edit_name(header: dict[str, Any], name: str, rng: random.Random) -> None:
    names = ("", ".lora_a", "fc", "fc.lora_c", "lm_head.lora_a", "\x00" * 9, "é" * 5000, name[:-1])
    header[rng.choice(names)] = header.pop(name)


# --- well-made files of the wrong tensors ---


def change_values(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    for name in rng.sample(sorted(tensors), rng.randint(1, 3)):
        flat = tensors[name].view(-1)
        flat[rng.randrange(len(flat))] = rng.choice(ODD_VALUES)
    return save(tensors)


def scale_up(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    for name in rng.sample(sorted(tensors), rng.randint(1, 16)):
        tensors[name] *= 10.0 ** rng.randint(5, 38)
    return save(tensors)


def cancel_out(blob: bytes, rng: random.Random) -> bytes:
    """A delta that is zero on paper: its terms are beyond all bounds."""
    tensors = load(blob)
    name = rng.choice(sorted(tensors)).rpartition(".")[0]
    tensors[f"{name}.lora_a"][:] = tensors[f"{name}.lora_a"][:1] * 10.0 ** rng.randint(6, 38)
    tensors[f"{name}.lora_b"][:, 1] = -tensors[f"{name}.lora_b"][:, 0]
    return save(tensors)


def change_shapes(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    name = rng.choice(sorted(tensors))
    changed: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda tensor: tensor.permute(*reversed(range(tensor.dim()))).contiguous(),
        lambda tensor: tensor[:-1].contiguous(),
        lambda tensor: tensor.flatten(),
        lambda tensor: tensor[None],
        lambda tensor: tensor.new_zeros(0, *tensor.shape[1:]),
        lambda tensor: torch.cat((tensor, tensor)),
    )
    tensors[name] = rng.choice(changed)(tensors[name])
    return save(tensors)


def change_dtypes(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    dtypes = (torch.float64, torch.complex64, torch.int32, torch.bool, torch.float8_e4m3fn, torch.uint8)
    name = rng.choice(sorted(tensors))
    tensors[name] = tensors[name].to(rng.choice(dtypes))
    return save(tensors)


def change_names(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    name = rng.choice(sorted(tensors))
    if rng.random() < 0.5:
        del tensors[name]
    else:
        tensors[rng.choice(("fc", "fc.lora_a.lora_a", "norm.lora_b", ".lora_a"))] = tensors.pop(name)
    return save(tensors)


BYTES = (flip_bits, flip_header_bits, cut_or_grow, move_a_piece, make_noise)
TENSORS = (edit_header, change_values, scale_up, cancel_out, change_shapes, change_dtypes, change_names)
MUTATIONS = BYTES + TENSORS
NEVER_FIT = (change_values, scale_up, cancel_out, change_shapes, change_dtypes, change_names)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_mutated_adapter_is_refused_or_fits(
    fitting: Fitting, mutate: Callable[[bytes, random.Random], bytes]
) -> None:
    """The registry's checks see each change; the replica's own hold where a publisher lies."""
    rng = random.Random(mutate.__name__)
    honest = versioned(1, blob=fitting.blob).manifest
    adopted = 0
    for _ in range(-(-BLOBS // len(MUTATIONS))):
        blob = mutate(fitting.blob, rng)
        if blob != fitting.blob:
            with pytest.raises(WireError):
                honest.verify(blob, None)
        before = fitting.slot.version
        try:
            fitting.adopt(blob)
        except WireError:
            assert fitting.slot.version == before
        else:
            adopted += 1
            fitting.check()
    if mutate in NEVER_FIT:
        assert adopted == 0
    if mutate is flip_bits:  # of low bits nobody can tell: they make another good adapter
        assert adopted > 0


def test_the_adapter_that_is_mutated_is_itself_a_good_one(fitting: Fitting) -> None:
    fitting.slot.swap(None)
    fitting.adopt(fitting.blob)
    fitting.check()
    assert all(
        not torch.equal(linear.weight, fitting.base[name])
        for name, linear in adapted_linears(fitting.drafter).items()
    )


def test_an_adapter_for_another_drafter_is_refused(fitting: Fitting) -> None:
    others = Fingerprints(target="t", drafter="another", tokenizer="k")
    with pytest.raises(WireError, match=r"was made for .*another"):
        build_adapter(versioned(3, fingerprints=others, blob=fitting.blob), FINGERPRINTS, fitting.drafter)


class VerifyingRegistry(FakeRegistry):
    """Delivers what is intact, as the real one does."""

    def fetch(self, version: int) -> VersionedWeights:
        weights = super().fetch(version)
        weights.manifest.verify(weights.blob, None)
        return weights

    def offer(self, manifest: Manifest, blob: bytes) -> None:
        self.put(manifest.version)
        self.versions[manifest.version] = VersionedWeights(manifest, blob)


def test_a_replica_that_is_offered_damaged_versions_stays_where_it_is(fitting: Fitting) -> None:
    """Damaged in the store under an honest manifest, or published so by a publisher that lies."""
    registry, slot, rng = VerifyingRegistry(), fitting.slot, random.Random(0)
    slot.swap(None)

    def swap(adapter: AdapterWeights) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(slot.swap(slot.stage(adapter)))
        return done

    def build(weights: VersionedWeights) -> AdapterWeights:
        return build_adapter(weights, FINGERPRINTS, fitting.drafter)

    follower = WeightFollower("r1", lambda: registry, Adoption(build, swap), poll_s=1.0)
    for number in range(300):
        honest = versioned(2 * number + 1, blob=fitting.blob).manifest
        damaged = cut_or_grow(rng.choice(BYTES)(fitting.blob, rng), rng)
        registry.offer(honest, damaged)
        follower.poll()
        bad = rng.choice(NEVER_FIT)(fitting.blob, rng)
        lie = {"version": 2 * number + 2, "length": len(bad), "sha256": hashlib.sha256(bad).hexdigest()}
        registry.offer(honest.model_copy(update=lie), bad)
        follower.poll()
    assert follower.counts().refused == 600
    assert follower.counts().swaps == follower.counts().not_applied == 0
    assert registry.acks == {"r1": 0}
    assert all(
        torch.equal(linear.weight, fitting.base[name])
        for name, linear in adapted_linears(fitting.drafter).items()
    )


@pytest.mark.parametrize("size", [1.0, 0.5])
def test_a_delta_may_be_as_large_as_the_limit_and_no_larger(fitting: Fitting, size: float) -> None:
    a, b = torch.zeros(1, 96), torch.zeros(32, 1)
    b[3], a[0, 5] = size, fitting.limits["fc"] / size * 0.999
    just = AdapterWeights(1, {"fc.lora_a": a, "fc.lora_b": b})
    fitting.slot.stage(just)
    with pytest.raises(WireError, match=r"the delta of fc has norm .* at most"):
        fitting.slot.stage(AdapterWeights(1, {"fc.lora_a": a * 1.01, "fc.lora_b": b}))


def test_in_half_precision_a_limit_keeps_sums_finite() -> None:
    drafter = tiny_drafter(tiny_target()).half()
    with torch.no_grad():
        drafter.fc.weight[:] = 0.0
        drafter.fc.weight[0, 0] = 60_000.0
    assert delta_limits(drafter)["fc"] == torch.finfo(torch.float16).max - 60_000.0


def test_limits_are_those_of_the_base_whatever_is_in_force(fitting: Fitting) -> None:
    fitting.slot.swap(None)
    a, b = torch.zeros(1, 96), torch.zeros(32, 1)
    b[0], a[0, 0] = 1.0, fitting.limits["fc"] * 0.999
    fitting.slot.swap(AdapterWeights(1, {"fc.lora_a": a, "fc.lora_b": b}))  # as far as it may go
    with pytest.raises(WireError):
        fitting.slot.stage(AdapterWeights(2, {"fc.lora_a": a * 1.1, "fc.lora_b": b}))
