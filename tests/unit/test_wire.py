"""Manifests: what is written is read back, and anything tampered with is refused."""

from __future__ import annotations

import hashlib
import json
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evospec.errors import WireError
from evospec.wire import MANIFEST_SCHEMA, Fingerprints, Manifest, TensorSpec

names = st.text(string.ascii_letters + string.digits + "._-é🙂", min_size=1, max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(min_size=1, max_size=40)
blobs = st.binary(min_size=1, max_size=300)


@st.composite
def manifests(draw: st.DrawFn, blob: bytes | None = None) -> Manifest:
    content = draw(blobs) if blob is None else blob
    tensors = st.builds(
        TensorSpec,
        name=names,
        shape=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
        dtype=st.sampled_from(["float32", "bfloat16"]),
    )
    return Manifest(
        schema=MANIFEST_SCHEMA,
        version=draw(st.integers(1, 2**53)),
        epoch=draw(st.integers(1, 2**53)),
        parent=draw(st.integers(0, 2**53)),
        created=draw(numbers),
        fingerprints=Fingerprints(target=draw(names), drafter=draw(names), tokenizer=draw(names)),
        tensors=tuple(draw(st.lists(tensors, max_size=3))),
        length=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        metrics=draw(st.dictionaries(names, numbers, max_size=3)),
        state=draw(st.sampled_from(["candidate", "canary", "stable", "revoked"])),
    )


@st.composite
def published(draw: st.DrawFn) -> tuple[Manifest, bytes]:
    blob = draw(blobs)
    return draw(manifests(blob)), blob


@given(manifest=manifests(), key=st.none() | keys)
def test_manifest_round_trip(manifest: Manifest, key: str | None) -> None:
    sent = manifest if key is None else manifest.signed(key)
    assert Manifest.from_json(sent.to_json()) == sent
    assert Manifest.from_json(sent.to_json().encode()) == sent


@given(pair=published(), key=keys)
def test_signature_survives_the_wire(pair: tuple[Manifest, bytes], key: str) -> None:
    manifest, blob = pair
    received = Manifest.from_json(manifest.signed(key).to_json())
    received.verify(blob, key)
    received.verify(blob, None)


@given(pair=published(), key=st.none() | keys, data=st.data())
def test_tampered_blob_is_refused(pair: tuple[Manifest, bytes], key: str | None, data: st.DataObject) -> None:
    manifest, blob = pair
    sent = manifest if key is None else manifest.signed(key)
    position = data.draw(st.integers(0, len(blob) - 1))
    flipped = bytearray(blob)
    flipped[position] ^= data.draw(st.integers(1, 255))
    for tampered in (bytes(flipped), blob[:position], blob + b"\0"):
        with pytest.raises(WireError, match=f"version {manifest.version}"):
            sent.verify(tampered, key)


@given(pair=published(), key=keys, data=st.data())
def test_tampered_manifest_is_refused(pair: tuple[Manifest, bytes], key: str, data: st.DataObject) -> None:
    """Every field but the state, which operators change, is under the signature."""
    manifest, blob = pair
    sent = manifest.signed(key)
    changed = {
        "version": manifest.version + 1,
        "epoch": manifest.epoch + 1,
        "parent": manifest.parent + 1,
        "created": 0.0 if manifest.created else 1.0,
        "fingerprints": manifest.fingerprints.model_copy(
            update={"target": manifest.fingerprints.target + "x"}
        ),
        "tensors": (*manifest.tensors, TensorSpec(name="extra", shape=(1,), dtype="float32")),
        "metrics": {**manifest.metrics, "a new one": 1.0},
    }
    name = data.draw(st.sampled_from(sorted(changed)))
    with pytest.raises(WireError, match="signature"):
        sent.model_copy(update={name: changed[name]}).verify(blob, key)


@given(pair=published(), key=keys)
def test_blob_swapped_with_its_hash_is_refused_by_the_signature(
    pair: tuple[Manifest, bytes], key: str
) -> None:
    manifest, blob = pair
    evil = bytes(len(blob)) + b"evil"
    forged = manifest.signed(key).model_copy(
        update={"length": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    )
    forged.verify(evil, None)
    with pytest.raises(WireError, match="signature"):
        forged.verify(evil, key)


@given(pair=published(), key=keys, other=keys)
def test_wrong_or_missing_signature_is_refused(pair: tuple[Manifest, bytes], key: str, other: str) -> None:
    manifest, blob = pair
    with pytest.raises(WireError, match="not signed"):
        manifest.verify(blob, key)
    if key != other:
        with pytest.raises(WireError, match="signature"):
            manifest.signed(other).verify(blob, key)


@given(pair=published(), key=keys)
def test_state_may_change_after_signing(pair: tuple[Manifest, bytes], key: str) -> None:
    manifest, blob = pair
    manifest.signed(key).model_copy(update={"state": "revoked"}).verify(blob, key)


@given(text=st.text() | st.binary())
def test_other_bytes_are_wire_errors(text: str | bytes) -> None:
    with pytest.raises(WireError):
        Manifest.from_json(text)


@given(manifest=manifests(), data=st.data())
def test_damaged_documents_are_wire_errors(manifest: Manifest, data: st.DataObject) -> None:
    document = json.loads(manifest.to_json())
    name = data.draw(st.sampled_from(sorted(document)))
    wrong = dict(document)
    wrong[name] = {"not": ["this", "type"]}
    damaged = [{**document, "unknown": 1}, wrong]
    if name not in ("schema", "signature", "metrics", "state"):  # the fields with defaults
        damaged.append({key: value for key, value in document.items() if key != name})
    for broken in damaged:
        if broken == document:
            continue
        with pytest.raises(WireError, match="manifest is not valid"):
            Manifest.from_json(json.dumps(broken))


@given(manifest=manifests(), schema=st.integers(-5, 50).filter(lambda schema: schema != MANIFEST_SCHEMA))
def test_another_schema_is_refused(manifest: Manifest, schema: int) -> None:
    document = {**json.loads(manifest.to_json()), "schema": schema}
    with pytest.raises(WireError, match=f"schema {schema}"):
        Manifest.from_json(json.dumps(document))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["created", "metrics"])
@given(manifest=manifests())
def test_numbers_that_json_lacks_are_not_read(field: str, value: float, manifest: Manifest) -> None:
    document = manifest.model_dump(by_alias=True)
    document[field] = {"gain": value} if field == "metrics" else value
    written = Manifest(**document).to_json()
    with pytest.raises(WireError, match=field):
        Manifest.from_json(written)
