"""Updates of head rows: the same change in parts, and on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.models.tables import TokenTables
from evospec.vocab import row_writes
from evospec.vocab.active import ActiveRows
from evospec.vocab.row_update import RowUpdate


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.integers(0, 60))
def test_parts_say_what_the_whole_says(written: int, dropped: int, most: int, before: int) -> None:
    rng = np.random.default_rng(written)
    slots, tokens = rng.permutation(60)[:written], rng.permutation(900)
    ids, gone = tokens[:written], tokens[written : written + dropped]
    update = RowUpdate(slots, ids, ids + 1000, gone, count=37)
    numbers = np.full(4 + 4 * most, -1)  # one buffer for all
    said: dict[str, list[int]] = {"slots": [], "sources": [], "ids": [], "dropped": []}
    parts = list(update.parts(most))
    assert parts  # a change of the count alone has to arrive, too
    for part in parts:
        part.pack(numbers, most, before)
        count, left, *slots_in_use = numbers[:4].tolist()
        assert slots_in_use == [37, before]
        for place, (name, seen) in zip(numbers[4:].reshape(4, most), said.items(), strict=True):
            seen += place[: left if name == "dropped" else count].tolist()
    assert said["slots"] == slots.tolist()
    assert said["sources"] == (ids + 1000).tolist()
    assert said["ids"] == ids.tolist()
    assert said["dropped"] == gone.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_holds_what_the_host_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_writes, "_AT_ONCE", 16)
    rng = np.random.default_rng(0)
    head = torch.randn(500, 70)
    here, there = (
        ActiveRows(TokenTables(head.to(device), head.to(device)), 200, half_life=4, padded=True)
        for device in ("cpu", "cuda")
    )
    for step in range(60):
        tokens = rng.permutation(500)[: rng.integers(1, 120)]
        scores = rng.random(len(tokens))
        for rows in (here, there):
            rows.tick()
            rows.activate(tokens, scores)
            if step % 7 == 0:
                rows.limit(int(tokens[0]) % 150 + 20)
            rows.write()
        own, other = here.view(), there.view()
        assert own.used == other.used
        for name in ("rows", "ids", "padding", "active"):
            assert torch.equal(getattr(other, name).cpu(), getattr(own, name)), (step, name)
