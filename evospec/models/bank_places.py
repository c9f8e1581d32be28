"""Where a bank is in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from evospec.errors import WireError
from evospec.models.bank import Bank
from evospec.models.deltas import merged
from evospec.models.draft_stacks import DraftStacks
from evospec.models.route_table import RouteTable


@dataclass(frozen=True, slots=True)
class BankPlaces:
    """Room for a bank: a variant of a drafter's weights for each kind, behind what all other requests get,
    and the routes to them. Captured graphs hold where it is: banks are written over each other."""

    stacks: DraftStacks
    routes: RouteTable

    @property
    def targets(self) -> dict[str, Tensor]:
        """What `contents` are written to, by name."""
        return self.stacks.by_parameter | {f"routes.{name}": one for name, one in self.routes.tensors.items()}

    def contents(
        self, base: Mapping[str, Tensor], general: Mapping[str, Tensor], bank: Bank | None
    ) -> dict[str, Tensor]:
        """What has to be written to bring a bank into force, by name, on the CPU.

        Args:
            base: the drafter's own weights by parameter.
            general: what requests of no kind get; so do those, still running, of a kind that is no more.
        """
        names = self.stacks.by_parameter.keys()
        stacks = {name: general[name].repeat(self.stacks.variants, 1, 1) for name in names}
        for variant, adapter in enumerate(() if bank is None else bank.adapters, start=1):
            weights = merged(base, adapter)
            for name, stack in stacks.items():
                stack[variant] = weights[name]
        routes = self.routes.contents(None if bank is None else bank.routes)
        return stacks | {f"routes.{name}": tensor for name, tensor in routes.items()}


def check_room(bank: Bank, places: BankPlaces | None, where: str) -> None:
    """Raises WireError when a bank has more kinds than there are places."""
    room = 0 if places is None else places.routes.places
    if bank.kinds > room:
        raise WireError(
            f"{where} has adapters for {bank.kinds} kinds of traffic, there is room for {room} here: set "
            f"alignment.adapters to {bank.kinds}"
        )
