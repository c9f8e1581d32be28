"""Banks as they are published, and which kind a context is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evospec.config import AlignmentConfig
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot
from evospec.models.bank import Bank
from evospec.models.deltas import Deltas
from evospec.models.drafter import Drafter
from evospec.models.route_table import RouteTable
from evospec.models.routes import MOST_CENTRES, Routes, direction
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.banks import random_bank, random_deltas, routes_to

Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def drafter() -> Drafter:
    return tiny_drafter(tiny_target())


def test_a_bank_travels_with_its_version(drafter: Drafter) -> None:
    bank = random_bank(drafter, 3, of=(0, 2, 1, 0, 2))
    bank = replace(bank, adapters=(bank.adapters[0], Deltas({}), bank.adapters[2]))
    general = random_deltas(drafter, 9)
    sent = AdapterWeights(4, general.tensors, torch.arange(7, dtype=torch.int32), bank=bank)
    received = AdapterWeights.from_bytes(sent.to_bytes(), 4, drafter)
    assert received.contents.keys() == sent.contents.keys()
    for name, tensor in sent.contents.items():
        assert torch.equal(received.contents[name], tensor), name
    assert received.bank is not None
    assert received.bank.kinds == 3
    assert received.bank.adapters[1].tensors == {}
    assert received.bank.routes.kinds.tolist() == [0, 2, 1, 0, 2]
    assert torch.equal(received.bank.routes.least, bank.routes.least)


def test_versions_from_before_kinds_could_have_several_centres_are_read(drafter: Drafter) -> None:
    bank = random_bank(drafter, 3)
    tensors = AdapterWeights(4, {}, bank=bank).contents
    del tensors["kinds.of"]
    tensors["kinds.least"] = torch.tensor([0.3])
    received = AdapterWeights.from_bytes(bytes(save(tensors)), 4, drafter).bank
    assert received is not None
    assert received.routes.kinds.tolist() == [0, 1, 2]
    assert torch.equal(received.routes.least, torch.full((3,), 0.3))
    contexts = torch.randn(20, drafter.config.target_hidden)
    earlier = routes_to(bank.routes.centres, least=0.3)
    assert torch.equal(received.routes.choose(contexts), earlier.choose(contexts))


def test_a_version_without_a_bank_has_the_bytes_it_always_had(drafter: Drafter) -> None:
    tensors = random_deltas(drafter, 1).tensors
    assert AdapterWeights(1, tensors).to_bytes() == save(tensors)
    assert AdapterWeights.from_bytes(bytes(save(tensors)), 1, drafter).bank is None


def test_all_of_a_version_is_scaled(drafter: Drafter) -> None:
    bank = random_bank(drafter, 2)
    whole = AdapterWeights(1, random_deltas(drafter, 5).tensors, bank=bank)
    half = whole.scaled(0.5)
    assert half.bank is not None
    assert half.bank.routes is bank.routes
    pairs = zip((whole.general, *bank.adapters), (half.general, *half.bank.adapters), strict=True)
    for before, after in pairs:
        for name, delta in before.deltas().items():
            torch.testing.assert_close(after.deltas()[name], delta * 0.5)


def drop(name: str) -> Change:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, tensor: Tensor) -> Change:
    return lambda tensors: tensors.__setitem__(name, tensor)


REFUSED: dict[str, tuple[Change, str]] = {
    "no centres": (drop("kinds.centres"), "no 'kinds.centres'"),
    "no common": (drop("kinds.common"), "no 'kinds.common'"),
    "no spread": (drop("kinds.spread"), "no 'kinds.spread'"),
    "no least": (drop("kinds.least"), "no 'kinds.least'"),
    "integers": (put("kinds.common", torch.zeros(32, dtype=torch.int64)), "not floats"),
    "other target": (put("kinds.common", torch.zeros(31)), "contexts have 32 numbers"),
    "other centres": (put("kinds.centres", torch.ones(2, 31)), "contexts of 32"),
    "flat centres": (put("kinds.centres", torch.ones(64)), "2 dimensions"),
    "no kinds": (put("kinds.centres", torch.ones(0, 32)), "2 dimensions"),
    "many centres": (put("kinds.centres", torch.ones(MOST_CENTRES + 1, 32)), f"at most {MOST_CENTRES}"),
    "fewer centres": (put("kinds.centres", torch.ones(1, 32)), "holds 2 numbers for 1 centres"),
    "fewer kinds": (put("kinds.of", torch.zeros(2, dtype=torch.int32)), "is of none of its 1 kinds"),
    "a kind left out": (put("kinds.of", torch.tensor([0, 2], dtype=torch.int32)), "number kinds from 0 on"),
    "no kind 0": (put("kinds.of", torch.ones(2, dtype=torch.int32)), "number kinds from 0 on"),
    "kinds below 0": (put("kinds.of", torch.tensor([-1, 0], dtype=torch.int32)), "number kinds from 0 on"),
    "kinds without end": (put("kinds.of", torch.tensor([0, 2**31 - 1], dtype=torch.int32)), "from 0 on"),
    "kinds of more": (put("kinds.of", torch.zeros(3, dtype=torch.int32)), "not int32 of 2"),
    "kinds in halves": (put("kinds.of", torch.zeros(2)), "not int32 of 2"),
    "wide kinds": (put("kinds.of", torch.arange(2)), "not int32 of 2"),
    "three leasts": (put("kinds.least", torch.zeros(3)), "holds 3 numbers"),
    "NaN least": (put("kinds.least", torch.tensor([torch.nan])), "NaN or infinity"),
    "infinite centre": (put("kinds.centres", torch.full((2, 32), torch.inf)), "NaN or infinity"),
    "no spread at all": (put("kinds.spread", torch.zeros(32)), "not above 0"),
    "tiny spread": (put("kinds.spread", torch.full((32,), 1e-45)), "beyond what"),
    "unknown": (put("kinds.other", torch.zeros(2, 2)), "is of none of its 2 kinds"),
    "padded number": (put("kinds.01.fc.lora_a", torch.zeros(2, 96)), "is of none of its 2 kinds"),
    "no such layer": (put("kinds.1.fd.lora_a", torch.zeros(2, 96)), "version 3, kind 1: the drafter has no"),
    "half": (drop("kinds.1.fc.lora_b"), "version 3, kind 1: fc has only one"),
    "norms": (put("kinds.0.norm.weight.delta", torch.zeros(32)), "version 3, kind 0: a whole delta of norm"),
    "NaN": (put("kinds.0.fc.lora_b", torch.full((32, 2), torch.nan)), "version 3, kind 0: fc.lora_b holds"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_in_one_line(drafter: Drafter, change: Change, said: str) -> None:
    tensors = dict(AdapterWeights(3, {}, bank=random_bank(drafter, 2)).contents)
    change(tensors)
    with pytest.raises(WireError, match=said) as refused:
        AdapterWeights.from_bytes(bytes(save(tensors)), 3, drafter)
    assert str(refused.value).startswith("adapter version 3")
    assert "\n" not in str(refused.value)


def test_an_absurdly_large_delta_of_a_kind_is_refused(drafter: Drafter) -> None:
    bank = random_bank(drafter, 2)
    absurd = {name: tensor * 1e4 for name, tensor in bank.adapters[1].tensors.items()}
    adapter = AdapterWeights(3, {}, bank=replace(bank, adapters=(bank.adapters[0], Deltas(absurd))))
    with pytest.raises(WireError, match="version 3, kind 1: the delta of"):
        AdapterSlot(drafter).stage(adapter)


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 5), centres=st.integers(1, 6), kinds=st.integers(1, 6))
def test_a_context_is_of_the_kind_of_the_nearest_centre_it_belongs_to(
    seed: int, rows: int, centres: int, kinds: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    middles, contexts = (
        torch.randn(centres, 8, generator=generator),
        torch.randn(rows, 8, generator=generator),
    )
    common = torch.randn(8, generator=generator)
    spread = torch.rand(8, generator=generator) + 0.5
    least = torch.rand(centres, generator=generator) * 2 - 1
    of = torch.randint(kinds, (centres,), generator=generator)
    routes = Routes(middles, of, common, spread, least)
    choices = routes.choose(contexts)
    assert choices.dtype is torch.int64
    assert choices.shape == (rows,)
    for context, choice in zip(contexts, choices.tolist(), strict=True):
        cosines = cosine_similarity((context - common) / spread, (middles - common) / spread, dim=-1)
        if choice == 0:
            assert (cosines < least + 1e-5).all()
        else:
            own = (of == choice - 1) & (cosines >= least - 1e-5)
            assert cosines[own].max() >= max([-1.0, *cosines[cosines >= least + 1e-5].tolist()]) - 1e-5
    table = RouteTable(kinds, 8, torch.device("cpu"))
    assert not table.choose(contexts).any()
    for name, tensor in table.contents(routes).items():
        table.tensors[name].copy_(tensor)
    assert torch.equal(table.choose(contexts), choices)


def test_a_context_that_is_no_number_or_nowhere_is_of_no_kind() -> None:
    routes = routes_to(torch.eye(3), least=0.1)
    contexts = torch.tensor([[torch.nan, 1, 0], [torch.inf, 0, 0], [0, 0, 0], [-1, -1, -1], [0, 2, 0]])
    assert routes.choose(contexts).tolist() == [0, 0, 0, 0, 2]


def test_directions_are_of_unit_length_whatever_the_dtype() -> None:
    contexts = torch.randn(4, 8).bfloat16()
    found = direction(contexts, torch.zeros(8), torch.ones(8))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))


def test_routes_are_read_as_they_were_written(drafter: Drafter) -> None:
    centres, kinds, least = torch.randn(3, 32), torch.tensor([0, 1, 0]), torch.tensor([0.25, 0.5, -0.25])
    routes = Routes(centres, kinds, torch.randn(32), torch.rand(32) + 0.1, least)
    blob = AdapterWeights(1, {}, bank=Bank(routes, (Deltas({}), Deltas({})))).to_bytes()
    assert load(blob)["kinds.least"].tolist() == [0.25, 0.5, -0.25]
    received = AdapterWeights.from_bytes(blob, 1, drafter).bank
    assert received is not None
    contexts = torch.randn(20, 32)
    assert torch.equal(received.routes.choose(contexts), routes.choose(contexts))


@pytest.mark.parametrize("other", [{"norms": True}, {"method": "full-parameter"}], ids=str)
def test_kinds_share_all_but_linear_layers(other: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="adapters: 2"):
        AlignmentConfig.model_validate({"adapters": 2, **other})
    assert AlignmentConfig.model_validate(other).adapters == 0


def test_whole_weights_are_trained_for_kinds_where_versions_cut_them() -> None:
    cut = {"method": "full-parameter", "publish_rank": 128}
    assert AlignmentConfig.model_validate({"adapters": 2, **cut}).publish_rank == 128
    assert AlignmentConfig.model_validate(cut).adapters == 0
    with pytest.raises(ValidationError, match="publish_rank: 128 cuts what method: full-parameter learns"):
        AlignmentConfig.model_validate({"publish_rank": 128})
    with pytest.raises(ValidationError, match="adapters: 2 shares all but linear layers"):
        AlignmentConfig.model_validate({"adapters": 2, "norms": True, **cut})
