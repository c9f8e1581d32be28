"""Damaged manifests: refused with a WireError, or the signature finds them out."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

import pytest

from evospec.errors import WireError
from evospec.wire import Manifest
from tests.unit.actors.fakes import versioned

KEY = "a key"
BLOB = b"weights"
MANIFESTS = 5_000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "1", "é", "\ud800",
    "\x00", "canary", [], [[]], [1], {}, {"a": 1}, {"name": "fc", "shape": [1], "dtype": "F32"},
)  # fmt: skip


def signed() -> Manifest:
    return versioned(3, blob=BLOB).manifest.signed(KEY)


def damage_text(text: str, rng: random.Random) -> bytes:
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(raw))
        if rng.random() < 0.5:
            raw[place] ^= 1 << rng.randrange(8)
        else:
            raw[place:place] = rng.randbytes(rng.randrange(4))
    return bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.1 else raw)


def change_fields(text: str, rng: random.Random) -> bytes:
    fields: dict[str, Any] = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(fields))
        if rng.random() < 0.1:
            del fields[name]
        elif rng.random() < 0.1:
            fields[rng.choice(("", "extra", name.upper()))] = deepcopy(rng.choice(ODD))
        elif isinstance(fields[name], dict) and fields[name] and rng.random() < 0.7:
            fields[name][rng.choice(sorted(fields[name]))] = deepcopy(rng.choice(ODD))
        else:
            fields[name] = deepcopy(rng.choice(ODD))
    return json.dumps(fields).encode()


@pytest.mark.parametrize("damage", [damage_text, change_fields], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_is_refused_unless_it_says_the_same(damage: Any) -> None:
    rng = random.Random(damage.__name__)
    good = signed()
    good.verify(BLOB, KEY)
    refused = 0
    for _ in range(MANIFESTS // 2):
        raw = damage(good.to_json(), rng)
        try:
            manifest = Manifest.from_json(raw)
            manifest.verify(BLOB, KEY)
        except WireError:
            refused += 1
        else:  # white space, or the state, which operators change
            assert manifest.model_copy(update={"state": good.state}) == good
    assert refused > MANIFESTS // 4


@pytest.mark.parametrize("signature", ["", "é", "\x00", "A" * 64, "0" * 10_000])
def test_whatever_a_signature_holds_it_is_compared(signature: str) -> None:
    forged = signed().model_copy(update={"signature": signature})
    with pytest.raises(WireError, match="signature does not match"):
        Manifest.from_json(forged.to_json()).verify(BLOB, KEY)
