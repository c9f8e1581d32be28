"""Routes where decoding follows them: on the device, in buffers that stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from evospec.models.routes import Routes, direction, nearest


class RouteTable:
    """Room for so many kinds; at first there are none.

    Attributes:
        tensors: what has to be written for other routes, as `contents` gives it for each.
    """

    __slots__ = ("_nowhere", "places", "tensors")

    def __init__(self, places: int, dim: int, device: torch.device) -> None:
        self.places = places
        self._nowhere = Routes(torch.zeros(0, dim), torch.zeros(dim), torch.ones(dim), 0.0)
        self.tensors = {name: tensor.to(device) for name, tensor in self.contents(None).items()}

    def contents(self, routes: Routes | None) -> dict[str, Tensor]:
        """Tensors for routes of as many kinds as there are places, or fewer, on the CPU."""
        routes = self._nowhere if routes is None else routes
        kinds, dim = routes.centres.shape
        centres = routes.centres.new_zeros(self.places, dim)
        centres[:kinds] = routes.units
        # No context is of a kind that is not there.
        least = routes.centres.new_full((self.places,), torch.inf)
        least[:kinds] = routes.least
        return {"centres": centres, "common": routes.common, "spread": routes.spread, "least": least}

    def choose(self, contexts: Tensor) -> Tensor:
        """Contexts [rows, dim] to choices, int64 [rows]; see `Routes.choose`."""
        directions = direction(contexts, self.tensors["common"], self.tensors["spread"])
        return nearest(directions, self.tensors["centres"], self.tensors["least"])
