"""The tensors that a training run consists of, by name: weights, optimiser, average, random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evospec.errors import EvoSpecError
from evospec.training.ema import WeightAverage

_WEIGHTS, _OPTIMIZER, _AVERAGE, _RANDOM = "weights.", "optimizer.", "average.", "random."


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What changes from step to step; names of tensors are `<part>.<parameter>[.<optimiser's name>]`."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    def dump(self) -> dict[str, Tensor]:
        tensors = {_WEIGHTS + name: tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{_OPTIMIZER}{name}.{key}"] = value
        if self.average is not None:
            tensors |= {_AVERAGE + name: tensor for name, tensor in self.average.weights.items()}
        tensors[_RANDOM + "cpu"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            tensors[_RANDOM + "cuda"] = torch.cuda.get_rng_state()
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `dump` gave.

        Raises:
            EvoSpecError: tensors are missing, or of another shape.
        """
        try:
            self.module.load_state_dict(_part(tensors, _WEIGHTS))
            if self.average is not None:
                for name, tensor in self.average.weights.items():
                    tensor.copy_(tensors[_AVERAGE + name])
        except (RuntimeError, KeyError) as error:
            detail = " ".join(str(error).split())
            raise EvoSpecError(f"the checkpoint does not fit this drafter: {detail}") from None
        self._load_optimizer(_part(tensors, _OPTIMIZER))
        torch.set_rng_state(tensors[_RANDOM + "cpu"])
        if torch.cuda.is_initialized() and _RANDOM + "cuda" in tensors:
            torch.cuda.set_rng_state(tensors[_RANDOM + "cuda"])

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for index, (name, _) in enumerate(self.module.named_parameters()):
            own = _part(tensors, name + ".")
            if own:
                state[index] = own
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
