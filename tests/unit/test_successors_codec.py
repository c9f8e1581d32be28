"""Successor tables as tensors of a version: exact for every table, a clear refusal for everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load, save
from torch import Tensor

from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter
from evospec.vocab.successor_table import SuccessorTable
from evospec.vocab.successors_codec import SUCCESSORS, WIDEST, take_tables, to_tensors
from evospec.vocab.tenants import tenant_key
from tests.tiny import tiny_drafter, tiny_target
from tests.unit.test_successors import VOCAB, WIDE, index_of, same, traffic

KEY = tenant_key("a")
NAMES = [f"{SUCCESSORS}{KEY}.{field}" for field in ("heads", "totals", "successors", "counts")]
GOOD = index_of([[1, 10, 2, 11, 3, 12]], WIDE).table()


@pytest.fixture(scope="module")
def drafter() -> Drafter:
    return tiny_drafter(tiny_target())


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=8).map(tenant_key), traffic, max_size=3))
def test_tables_survive_a_version(tenants: dict[str, list[list[int]]]) -> None:
    tables = {key: index_of(requests, WIDE).table() for key, requests in tenants.items()}
    tables = {key: table for key, table in tables.items() if len(table)}
    tensors = load(save(to_tensors(tables)))
    read = take_tables(tensors, VOCAB)
    assert tensors == {}
    assert read.keys() == tables.keys()
    assert all(same(read[key], tables[key]) for key in tables)


def test_a_version_brings_its_tables(drafter: Drafter) -> None:
    sent = AdapterWeights(3, {}, None, {KEY: GOOD, tenant_key("b"): GOOD.first(1)})
    assert {name.removeprefix(SUCCESSORS)[:32] for name in sent.contents} == {KEY, tenant_key("b")}
    received = AdapterWeights.from_bytes(sent.to_bytes(), 3, drafter)
    assert same(received.successors[KEY], GOOD)
    assert len(received.successors[tenant_key("b")]) == 1
    assert received.tensors == {}
    assert AdapterWeights.from_bytes(AdapterWeights(4, {}).to_bytes(), 4, drafter).successors == {}


def refused(table: SuccessorTable, message: str) -> None:
    with pytest.raises(WireError, match=message):
        take_tables(to_tensors({KEY: table}), VOCAB)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("totals", [np.nan, 1.0], "not finite"),
        ("totals", [0.0, 1.0], "never seen"),
        ("totals", [1e-45, 1.0], "beyond all measure"),
        ("totals", [1.0], "has shape"),
        ("counts", [[-1.0, 0.0], [1e38, 0.0]], "negative"),
        ("counts", [[0.0, 0.0], [1.0, 0.0]], "same places"),
        ("counts", [[1.0], [1.0]], "has shape"),
        ("successors", [[9, 9], [9, -1]], "successor of one head comes twice"),
        ("successors", [[-2, -1], [9, -1]], "successors outside"),
        ("successors", [[VOCAB, -1], [9, -1]], "successors outside"),
        ("successors", [9, -1], "has shape"),
        ("heads", [1, 1], "do not rise"),
        ("heads", [2, 1], "do not rise"),
        ("heads", [-1, 1], "heads outside"),
        ("heads", [1, VOCAB], "heads outside"),
        ("heads", [1, 2, 3], "has shape"),
        ("heads", [[1], [2]], "has shape"),
        ("heads", [], "has 0 heads"),
        ("heads", list(range(VOCAB + 1)), f"has {VOCAB + 1} heads"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(field: str, values: list[object], message: str) -> None:
    table = SuccessorTable(
        np.array([1, 2], dtype=np.int32),
        np.array([1.0, 1.0], dtype=np.float32),
        np.array([[9, -1], [9, -1]], dtype=np.int32),
        np.array([[1e8, 0.0], [1.0, 0.0]], dtype=np.float32),
    )
    dtype = np.int32 if field in ("heads", "successors") else np.float32
    refused(replace(table, **{field: np.array(values, dtype=dtype)}), message)


def test_a_table_may_not_be_wider_than_any_setting() -> None:
    refused(SuccessorTable.of_size(1, WIDEST + 1), f"with {WIDEST + 1} successors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.float8_e4m3fn])
def test_ids_are_32_bits(dtype: torch.dtype) -> None:
    tensors = to_tensors({KEY: GOOD})
    tensors[f"{SUCCESSORS}{KEY}.heads"] = tensors[f"{SUCCESSORS}{KEY}.heads"].to(dtype)
    with pytest.raises(WireError, match=r"expected torch\.int32"):
        take_tables(tensors, VOCAB)


@pytest.mark.parametrize(
    "name",
    ["x", f"{KEY}.head", f"{KEY[:-1]}.heads", f"{KEY.upper()}.heads", f"{KEY}.heads.x", f"{KEY}.heads\n"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WireError, match="is no part of a tenant's successor table"):
        take_tables({f"{SUCCESSORS}{name}": torch.zeros(1, dtype=torch.int32)}, VOCAB)


def test_a_table_in_part_is_refused(drafter: Drafter) -> None:
    tensors = to_tensors({KEY: GOOD})
    del tensors[f"{SUCCESSORS}{KEY}.counts"]
    with pytest.raises(WireError, match=r"adapter version 3: .* lacks counts"):
        AdapterWeights.from_bytes(bytes(save(tensors)), 3, drafter)


numbers = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.floats(width=32)
)
ids = hnp.arrays(
    np.int32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.integers(-2, VOCAB)
)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.one_of(numbers, ids).map(torch.from_numpy),
    )
)
def test_whatever_is_taken_can_be_looked_up(forged: dict[str, Tensor]) -> None:
    tensors = {**to_tensors({KEY: GOOD}), **forged}
    try:
        (table,) = take_tables(tensors, VOCAB).values()
    except WireError:
        return
    found = table.look_up(np.arange(VOCAB))
    assert np.isfinite(found.shares).all()
    assert ((found.shares > 0) & (found.token_ids >= 0) & (found.token_ids < VOCAB)).all()


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_can_be_looked_up(data: st.DataObject, drafter: Drafter) -> None:
    blob = bytearray(AdapterWeights(3, {}, None, {KEY: GOOD}).to_bytes())
    for place in data.draw(st.lists(st.integers(0, len(blob) - 1), min_size=1, max_size=4)):
        blob[place] ^= data.draw(st.integers(1, 255))
    try:
        read = AdapterWeights.from_bytes(bytes(blob), 3, drafter)
    except WireError:
        return
    for table in read.successors.values():
        assert np.isfinite(table.look_up(np.arange(VOCAB)).shares).all()
