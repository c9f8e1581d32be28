"""What is read from the registry's keys: intact records come back as they were, all else is refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evospec.errors import RegistryError, WireError
from evospec.wire import Manifest, Rollout, RolloutEvent
from services.registry_contents import (
    digest_of,
    read_event,
    read_manifest,
    read_number,
    read_rollout,
    read_training_state,
    read_weights,
    seal_of,
)
from tests.unit.actors.fakes import versioned
from tests.unit.test_manifest_fuzz import BLOB, KEY, change_fields, damage_text, signed

FUZZED = 10_000
WHERE = "redis://host:6379/0"


def damaged_manifests(count: int) -> list[bytes]:
    """Of version 3; a few say the same in other bytes."""
    rng = random.Random(7)
    text = signed().to_json()
    ways: list[Callable[[str, random.Random], bytes]] = [damage_text, change_fields]
    made = [rng.choice(ways)(text, rng) for _ in range(count)]
    return [raw for raw in made if raw != text.encode()]


def test_a_damaged_manifest_is_never_fetched() -> None:
    """With the digest that was stored beside it, by anyone: nothing has to be signed."""
    digest = digest_of(signed().to_json())
    assert read_manifest(3, signed().to_json().encode(), digest.encode(), b"stable") == signed()
    for raw in damaged_manifests(FUZZED):
        with pytest.raises(WireError, match="version 3: manifest does not match its digest"):
            read_manifest(3, raw, digest, b"stable")


def test_a_forged_manifest_is_refused_unless_it_says_the_same() -> None:
    """Digest and all were replaced: then it is the signature that counts."""
    refusals = []
    for raw in damaged_manifests(FUZZED):
        try:
            manifest = read_manifest(3, raw, digest_of(raw), b"stable")
            weights = read_weights(3, manifest, BLOB, KEY)
        except WireError as error:
            refusals.append(str(error))
        else:
            assert weights.manifest == signed()
    assert len(refusals) > FUZZED // 2
    assert not any("\n" in refusal for refusal in refusals)


def test_the_state_is_the_one_of_now() -> None:
    text = signed().to_json()
    for state in ("candidate", "canary", "stable", "revoked"):
        manifest = read_manifest(3, text, digest_of(text), state.encode())
        assert manifest.state == state
        read_weights(3, manifest, BLOB, KEY)
    for odd in (None, b"", b"best", b"\xff"):
        with pytest.raises(WireError, match="state is"):
            read_manifest(3, text, digest_of(text), odd)


@pytest.mark.parametrize("missing", [(None, b"x"), (b"{}", None), (None, None)])
def test_what_is_missing_is_refused(missing: tuple[bytes | None, bytes | None]) -> None:
    with pytest.raises(WireError, match="does not match its digest"):
        read_manifest(3, *missing, b"stable")


def test_the_manifest_of_another_version_is_refused() -> None:
    text = signed().to_json()
    with pytest.raises(WireError, match="version 4: its manifest is that of version 3"):
        read_manifest(4, text, digest_of(text), b"stable")


@given(
    state=st.binary(max_size=50), version=st.integers(1, 9), key=st.none() | st.text(min_size=1, max_size=9)
)
def test_training_states_are_sealed(state: bytes, version: int, key: str | None) -> None:
    seal = seal_of(version, state, key)
    assert read_training_state(version, state, seal.encode(), key) == state
    wrong = [(version, state + b"x", seal, key), (version, state, None, key), (version, state, b"\xff", key)]
    if key is not None:
        wrong += [
            (version + 1, state, seal, key),
            (version, state, seal, key + "x"),
            (version, state, seal, None),
        ]
    for arguments in wrong:
        with pytest.raises(WireError, match="training state"):
            read_training_state(*arguments)


@given(
    serial=st.integers(0, 2**53),
    stable=st.integers(0, 2**53),
    candidate=st.integers(0, 2**53),
)
def test_rollouts_are_read(serial: int, stable: int, candidate: int) -> None:
    first, second, third = (str(number).encode() for number in (serial, stable, candidate))
    read = read_rollout(WHERE, first, second, third, b'["a", "\\u00e9"]')
    assert read == Rollout(serial, stable, candidate, frozenset({"a", "é"}))
    assert read_rollout(WHERE, None, None, None, None) == Rollout()


@given(raw=st.binary(min_size=1), field=st.integers(0, 3))
def test_anything_else_is_a_registry_error(raw: bytes, field: int) -> None:
    fields: list[bytes] = [b"1", b"1", b"0", b"[]"]
    fields[field] = raw
    caught = None
    try:
        assert isinstance(read_rollout(WHERE, *fields), Rollout)
    except RegistryError as error:
        caught = str(error)
    assert caught is None or (caught.startswith(WHERE) and "\n" not in caught)


@pytest.mark.parametrize("canary", [b"{}", b'"a"', b"[1]", b"[", b"null", b"[" * 100_000])
def test_replicas_are_a_list_of_names(canary: bytes) -> None:
    with pytest.raises(RegistryError, match=r"holds a list of canary replicas .* registry\.namespace"):
        read_rollout(WHERE, b"1", b"1", b"0", canary)


def test_events_are_read() -> None:
    fields: dict[bytes | str, bytes | str] = {
        b"event": b"revoke",
        b"version": b"3",
        b"by": b"me",
        b"reason": b"slow",
        b"sha256": b"ab",
        b"receipt": b"r",
    }
    expected = RolloutEvent(event="revoke", version=3, time_s=1.5, by="me", reason="slow", sha256="ab")
    assert read_event(WHERE, b"1500-7", fields) == expected
    for name, odd in ((b"event", b"drunk"), (b"version", b"x"), (b"event", b"\xff")):
        with pytest.raises(RegistryError, match="holds event '1500-7' that can't be read"):
            read_event(WHERE, b"1500-7", {**fields, name: odd})


def test_numbers_are_read() -> None:
    assert read_number(WHERE, "a version", b"7") == 7
    assert read_number(WHERE, "a version", None) == 0
    with pytest.raises(RegistryError, match=r"holds a version \(b'x' is no number\)"):
        read_number(WHERE, "a version", b"x")


def test_a_manifest_as_published_survives() -> None:
    plain = versioned(3, blob=BLOB).manifest
    text = plain.to_json()
    assert Manifest.from_json(text) == read_manifest(3, text.encode(), digest_of(text), b"stable")
