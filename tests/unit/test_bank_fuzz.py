"""Damaged or malicious banks: refused with a WireError, or fit to draft with."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot
from evospec.models.bank_places import BankPlaces
from evospec.models.deltas import delta_limits
from evospec.models.draft_stacks import DraftStacks
from evospec.models.drafter import Drafter
from evospec.models.route_table import RouteTable
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.banks import random_bank
from tests.unit.test_adapter_fuzz import BYTES, change_dtypes, change_names, change_shapes, edit_header

BLOBS = 1_500
KINDS = 3
ODD_VALUES = (float("nan"), float("inf"), 1e30, -1.0, 0.0, 1e-45)
ODD_KINDS = (-(2**31), -1, 0, KINDS - 1, KINDS, 2**31 - 1)


def odd(tensor: Tensor, rng: random.Random) -> float:
    return rng.choice(ODD_VALUES if tensor.is_floating_point() else ODD_KINDS)


def change_values(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    name = rng.choice(sorted(tensors))
    flat = tensors[name].view(-1)
    flat[rng.randrange(len(flat))] = odd(flat, rng)
    return save(tensors)


def fill(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    name = rng.choice(sorted(tensors))
    tensors[name][:] = odd(tensors[name], rng)
    return save(tensors)


def rename_a_kind(blob: bytes, rng: random.Random) -> bytes:
    tensors = load(blob)
    name = rng.choice([name for name in sorted(tensors) if "lora" in name])
    kind = name.split(".")[1]
    other = rng.choice(("-1", "3", "00", "1e0", "²", "9" * 5000, "", "1."))
    tensors[name.replace(f"kinds.{kind}.", f"kinds.{other}.", 1)] = tensors.pop(name)
    return save(tensors)


MUTATIONS = (*BYTES, edit_header, change_shapes, change_dtypes, change_names, change_values, fill)


class Places:
    """A drafter with room for a bank."""

    def __init__(self) -> None:
        self.drafter: Drafter = tiny_drafter(tiny_target())
        self.limits = delta_limits(self.drafter)
        self.routes = RouteTable(KINDS, self.drafter.config.target_hidden, torch.device("cpu"))
        self.stacks = DraftStacks(self.drafter, KINDS + 1)
        self.slot = AdapterSlot(self.drafter, BankPlaces(self.stacks, self.routes))
        self.base = {name: stack.clone() for name, stack in self.stacks.by_parameter.items()}
        self.contexts = torch.randn(20, self.drafter.config.target_hidden)

    def check(self) -> None:
        for name, stack in self.stacks.by_parameter.items():
            changes = (stack - self.base[name]).flatten(1).norm(dim=1)
            assert (changes <= self.limits[name.removesuffix(".weight")] * 1.001).all(), name
        assert set(self.routes.choose(self.contexts).tolist()) <= set(range(KINDS + 1))


@pytest.fixture(scope="module")
def places() -> Places:
    return Places()


@pytest.fixture(scope="module")
def blob(places: Places) -> bytes:
    bank = random_bank(places.drafter, KINDS, of=(0, 1, 2, 1, 0))
    return AdapterWeights(1, {}, bank=bank).to_bytes()


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_mutated_bank_is_refused_or_fits(
    places: Places, blob: bytes, mutate: Callable[[bytes, random.Random], bytes]
) -> None:
    rng, said = random.Random(mutate.__name__), list[str]()
    for number in range(-(-BLOBS // len(MUTATIONS))):
        before = places.slot.version
        try:
            adapter = AdapterWeights.from_bytes(mutate(blob, rng), number + 2, places.drafter)
            places.slot.swap(places.slot.stage(adapter))
        except WireError as refused:
            said.append(str(refused))
            assert places.slot.version == before
        else:
            places.check()
    assert not any("\n" in line for line in said)


def test_adapters_of_kinds_that_are_none_are_refused(places: Places, blob: bytes) -> None:
    rng = random.Random(0)
    for _ in range(50):
        with pytest.raises(WireError):
            AdapterWeights.from_bytes(rename_a_kind(blob, rng), 1, places.drafter)


def test_the_bank_that_is_mutated_is_itself_a_good_one(places: Places, blob: bytes) -> None:
    places.slot.swap(AdapterWeights.from_bytes(blob, 1, places.drafter))
    places.check()
    for name, stack in places.stacks.by_parameter.items():
        assert torch.equal(stack[0], places.base[name][0])
        assert not any(torch.equal(stack[variant], stack[0]) for variant in range(1, KINDS + 1))
