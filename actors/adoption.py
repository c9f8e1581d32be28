"""How a fetched version becomes what the engine drafts with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter
from evospec.wire import Fingerprints, VersionedWeights


@dataclass(frozen=True, slots=True)
class Adoption:
    """The two steps from bytes to drafts; both are called on the follower's thread.

    Attributes:
        build: checks fetched bytes; raises WireError.
        swap: prepares the weights beside the running ones, which may raise WireError, and has the
            engine take them between two cycles. A future that was cancelled is not carried out.
    """

    build: Callable[[VersionedWeights], AdapterWeights]
    swap: Callable[[AdapterWeights], Future[None]]


def build_adapter(weights: VersionedWeights, own: Fingerprints, drafter: Drafter) -> AdapterWeights:
    """Adapter of a fetched version.

    Raises:
        WireError: it was made for another target, drafter or tokenizer, or does not fit the drafter.
    """
    version, made_for = weights.manifest.version, weights.manifest.fingerprints
    if made_for != own:
        raise WireError(f"adapter version {version} was made for {made_for}, this replica has {own}")
    return AdapterWeights.from_bytes(weights.blob, version, drafter)
