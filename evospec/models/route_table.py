"""Routes where decoding follows them: on the device, in buffers that stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from evospec.models.routes import MOST_CENTRES, Routes, direction, nearest


class RouteTable:
    """Room for so many kinds, of as many centres as routes may have; at first there are none.

    Attributes:
        tensors: what has to be written for other routes, as `contents` gives it for each.
    """

    __slots__ = ("_nowhere", "places", "tensors")

    def __init__(self, places: int, dim: int, device: torch.device) -> None:
        self.places = places
        self._nowhere = Routes(
            centres=torch.zeros(0, dim),
            kinds=torch.zeros(0, dtype=torch.int64),
            common=torch.zeros(dim),
            spread=torch.ones(dim),
            least=torch.zeros(0),
        )
        self.tensors = {name: tensor.to(device) for name, tensor in self.contents(None).items()}

    def contents(self, routes: Routes | None) -> dict[str, Tensor]:
        """Tensors for routes of as many kinds as there are places, or fewer, on the CPU."""
        routes = self._nowhere if routes is None else routes
        count, dim = routes.centres.shape
        centres, kinds = routes.centres.new_zeros(MOST_CENTRES, dim), routes.kinds.new_zeros(MOST_CENTRES)
        centres[:count], kinds[:count] = routes.units, routes.kinds
        # No context belongs to a centre that is not there.
        least = routes.least.new_full((MOST_CENTRES,), torch.inf)
        least[:count] = routes.least
        return {
            "centres": centres,
            "kinds": kinds,
            "common": routes.common,
            "spread": routes.spread,
            "least": least,
        }

    def choose(self, contexts: Tensor) -> Tensor:
        """Contexts [rows, dim] to choices, int64 [rows]; see `Routes.choose`."""
        own = self.tensors
        directions = direction(contexts, own["common"], own["spread"])
        return nearest(directions, own["centres"], own["least"], own["kinds"])
