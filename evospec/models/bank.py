"""A bank: one adapter per kind of traffic, beside what all other requests get."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evospec.errors import WireError
from evospec.models.deltas import FLOATS, Deltas
from evospec.models.drafter import Drafter
from evospec.models.routes import MOST_CENTRES, Routes

_PREFIX = "kinds."
_CENTRES, _COMMON, _SPREAD, _LEAST, _OF = (
    _PREFIX + name for name in ("centres", "common", "spread", "least", "of")
)


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Adapters for kinds of traffic.

    Attributes:
        routes: which kind a request is of.
        adapters: LoRA matrices of linear layers, by kind; without tensors it is the base. No whole deltas:
            norms are shared.
    """

    routes: Routes
    adapters: tuple[Deltas, ...]

    @property
    def kinds(self) -> int:
        return len(self.adapters)

    @property
    def contents(self) -> dict[str, Tensor]:
        """All tensors by name, as they are published."""
        routes = self.routes
        named = {
            _CENTRES: routes.centres,
            _COMMON: routes.common,
            _SPREAD: routes.spread,
            _LEAST: routes.least,
            _OF: routes.kinds.int(),
        }
        for kind, deltas in enumerate(self.adapters):
            named |= {f"{_PREFIX}{kind}.{name}": tensor for name, tensor in deltas.tensors.items()}
        return named

    @classmethod
    def take(cls, tensors: dict[str, Tensor], where: str) -> Bank | None:
        """Takes a bank's tensors out of a version's; None when there are none.

        Earlier versions have one centre for each kind, and one least cosine for all.

        Args:
            where: what error lines begin with, such as "adapter version 3".

        Raises:
            WireError: some are missing, unknown, or of other shapes or dtypes.
        """
        named = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_PREFIX)}
        if not named:
            return None
        centres = _floats(named, _CENTRES, 2, where)
        common, spread = _floats(named, _COMMON, 1, where), _floats(named, _SPREAD, 1, where)
        least = _floats(named, _LEAST, 1, where)
        if len(centres) > MOST_CENTRES:
            raise WireError(f"{where} has {len(centres)} centres of traffic, at most {MOST_CENTRES}")
        if len(least) == 1:
            least = least.repeat(len(centres))
        if len(least) != len(centres):
            raise WireError(f"{where}: {_LEAST!r} holds {len(least)} numbers for {len(centres)} centres")
        kinds = _kinds(named, len(centres), where)
        adapters: list[Deltas] = []
        for kind in range(int(kinds.max()) + 1):
            prefix = f"{_PREFIX}{kind}."
            own = [name for name in named if name.startswith(prefix)]
            deltas = {name.removeprefix(prefix): named.pop(name) for name in own}
            adapters.append(Deltas.read(deltas, f"{where}, kind {kind}"))
        if named:
            raise WireError(f"{where}: {min(named)[:80]!r} is of none of its {len(adapters)} kinds")
        return cls(Routes(centres, kinds, common, spread, least), tuple(adapters))

    def check(self, drafter: Drafter, where: str) -> None:
        """Raises WireError unless the routes are finite and lead from contexts of `drafter`'s target to the
        adapters at hand; the adapters' own tensors are checked by `Deltas.check`."""
        routes, size = self.routes, drafter.config.target_hidden
        count = len(routes.kinds)
        if routes.centres.shape != (count, size) or not 0 < count <= MOST_CENTRES:
            raise WireError(
                f"{where}: {_CENTRES!r} has shape {tuple(routes.centres.shape[:4])}, for {count} centres "
                f"(1 to {MOST_CENTRES}) of contexts of {size}"
            )
        if routes.kinds.unique().tolist() != list(range(self.kinds)):
            raise WireError(f"{where}: {_OF!r} does not name each of its {self.kinds} kinds, from 0")
        if routes.least.shape != (count,):
            raise WireError(f"{where}: {_LEAST!r} holds {routes.least.numel()} numbers for {count} centres")
        for name, tensor in ((_COMMON, routes.common), (_SPREAD, routes.spread)):
            if tensor.shape != (size,):
                raise WireError(
                    f"{where}: {name!r} has shape {tuple(tensor.shape[:4])}, contexts have {size} numbers"
                )
        numbers = (routes.centres, routes.common, routes.spread, routes.least)
        if not all(bool(torch.isfinite(one).all()) for one in numbers):
            raise WireError(f"{where}: its routes hold NaN or infinity")
        if not (routes.spread > 0).all():
            raise WireError(f"{where}: {_SPREAD!r} is not above 0 everywhere")
        if not torch.isfinite(routes.units).all():
            raise WireError(f"{where}: {_CENTRES!r} lie beyond what {_SPREAD!r} can be multiplied to")
        for kind, deltas in enumerate(self.adapters):
            if whole := deltas.whole_deltas():
                raise WireError(
                    f"{where}, kind {kind}: a whole delta of {min(whole)}, kinds have LoRA matrices only"
                )

    def scaled(self, share: float) -> Bank:
        """The same kinds, all deltas so much of what they are."""
        return replace(self, adapters=tuple(deltas.scaled(share) for deltas in self.adapters))


def _floats(named: dict[str, Tensor], name: str, dimensions: int, where: str) -> Tensor:
    """Takes out a tensor of so many dimensions, as float32."""
    tensor = named.pop(name, None)
    if tensor is None:
        raise WireError(f"{where} has kinds of traffic, but no {name!r}")
    if tensor.dtype not in FLOATS or tensor.dim() != dimensions or not tensor.numel():
        raise WireError(
            f"{where}: {name!r} is {tensor.dtype} of shape {tuple(tensor.shape[:4])}, not floats in "
            f"{dimensions} dimension{'s' if dimensions > 1 else ''}"
        )
    return tensor.float()


def _kinds(named: dict[str, Tensor], centres: int, where: str) -> Tensor:
    """Takes out which kind each centre is of, as int64."""
    tensor = named.pop(_OF, None)
    if tensor is None:
        return torch.arange(centres)
    if tensor.dtype is not torch.int32 or tensor.shape != (centres,):
        raise WireError(
            f"{where}: {_OF!r} is {tensor.dtype} of shape {tuple(tensor.shape[:4])}, not int32 of {centres}"
        )
    kinds = tensor.long()
    distinct = kinds.unique()
    if not torch.equal(distinct, torch.arange(len(distinct))):
        raise WireError(f"{where}: {_OF!r} does not number kinds from 0 on")
    return kinds
