"""A version that the aligner offers to the registry."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from evospec.models.adapter import AdapterWeights
from evospec.wire import MANIFEST_SCHEMA, Fingerprints, Manifest, TensorSpec, VersionState


@dataclass(frozen=True, slots=True)
class Offer:
    """A version to publish: weights, the version they had to beat, and how the gate judged them."""

    adapter: AdapterWeights
    parent: int
    metrics: Mapping[str, float]
    training_state: bytes | None = None

    def manifest(self, blob: bytes, epoch: int, fingerprints: Fingerprints, state: VersionState) -> Manifest:
        """Describes the offer as published by `epoch`; `blob` is what the adapter's bytes are."""
        return Manifest(
            schema=MANIFEST_SCHEMA,
            version=self.adapter.version,
            epoch=epoch,
            parent=self.parent,
            created=time.time(),
            fingerprints=fingerprints,
            tensors=tuple(
                TensorSpec(
                    name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
                )
                for name, tensor in sorted(self.adapter.contents.items())
            ),
            length=len(blob),
            sha256=hashlib.sha256(blob).hexdigest(),
            metrics=dict(self.metrics),
            state=state,
        )
