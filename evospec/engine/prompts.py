"""Prompts on their way through the models, chunk by chunk."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from evospec.engine.drafting import Drafting
from evospec.engine.sizes import Sizes
from evospec.engine.slots import Slots
from evospec.engine.state import RequestState
from evospec.models.drafter import Drafter
from evospec.models.graphs import Graphs
from evospec.models.kv_cache import Window
from evospec.models.target import Target, TargetOutput
from evospec.vocab.head_rows import Staging


class PromptPasses:
    """Writes prompts to the caches of their slots.

    Where sizes are rounded, a prompt's beginning is padded to one of a few widths and processed in
    caches apart, from which its part is copied: so it can be captured, whatever its slot. Launching
    kernel by kernel takes ten times as long as a GPU needs for a short prompt. Where kinds of traffic have
    adapters of their own, the target's states say which one drafts: its part is captured apart.

    Args:
        drafting: writes the drafter's pairs as well; None when decoding is plain.
        longest: positions processed at once, at most.

    Attributes:
        graphs: of the target's part.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        drafting: Drafting | None,
        slots: Slots,
        sizes: Sizes,
        longest: int,
    ) -> None:
        self._target, self._drafting, self._slots = target, drafting, slots
        self._widths = sizes.prompt_widths(longest)
        self.graphs: Graphs[TargetOutput] = Graphs(target.device)
        # One token more: the pair of a position holds the token after it.
        self._staging = Staging(longest + 1, target.device)
        self._draft_graphs: Graphs[None] = Graphs(target.device)
        self._chooses = slots.routes is not None
        if self._widths:
            widest = self._widths[-1]
            self._tokens = torch.zeros(1, widest + 1, dtype=torch.int64, device=target.device)
            self._cache = target.new_cache(1, widest)
            self._draft_cache = None if drafter is None else drafter.new_cache(1, widest)
            self._choice = torch.zeros(1, dtype=torch.int64, device=target.device)

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return self.graphs.captures + self._draft_graphs.captures

    def prepare(self) -> None:
        """Captures every width."""
        for width in self._widths:
            self._draft(width, self._read(width))

    def takes_whole(self, length: int) -> bool:
        """Whether a prompt is processed at once, from its start: then there is little to gain from keys
        that another slot holds."""
        return bool(self._widths) and length <= self._widths[-1]

    def process(self, state: RequestState, stop: int) -> TargetOutput:
        """Runs a prompt's positions from where it stands to `stop`; what it returns holds until the next."""
        start = state.prefilled
        if start == 0 and self.takes_whole(stop):
            output = self._from_start(state, stop)
        else:
            output = self._behind(state, start, stop)
        state.prefilled = stop
        return output

    def _behind(self, state: RequestState, start: int, stop: int) -> TargetOutput:
        """Kernel by kernel, behind what the slot holds already."""
        device = self._target.device
        tokens = self._staging.upload(np.array(state.tokens[start : stop + 1]))[None]
        window = Window.of([start], stop - start, device, first_slot=state.slot)
        output = self._target.forward(tokens[:, : stop - start], window, self._slots.cache)
        self._slots.read(state, output.hidden[0])
        pairs = min(stop, len(state.tokens) - 1) - start
        if self._drafting is not None and output.features is not None and pairs:
            window = Window.of([start], pairs, device, first_slot=state.slot)
            choice = self._slots.state.choice[state.slot : state.slot + 1]
            features = output.features[:, :pairs]
            self._drafting.absorb_prompt(tokens[:, 1 : 1 + pairs], features, window, choice)
        return output

    def _from_start(self, state: RequestState, stop: int) -> TargetOutput:
        """Padded, in the caches apart, and copied from there."""
        # The token after the last position is not known when the prompt ends there: that pair waits.
        tokens = state.tokens[: stop + 1]
        width = next(width for width in self._widths if width >= stop)
        padded = np.zeros(width + 1, dtype=np.int64)
        padded[: len(tokens)] = tokens
        self._tokens[0, : width + 1] = self._staging.upload(padded)
        output = self._read(width)
        self._slots.read(state, output.hidden[0, :stop])
        self._choice.copy_(self._slots.state.choice[state.slot : state.slot + 1])
        self._draft(width, output)
        self._slots.take(self._cache, self._draft_cache, state.slot, stop)
        features = None if output.features is None else output.features[:, :stop]
        return TargetOutput(output.hidden[:, :stop], features)

    def _read(self, width: int) -> TargetOutput:
        """The target's part of a width; the drafter's, too, unless that has a choice to wait for."""
        return self.graphs.run(width, partial(self._padded, width))

    def _draft(self, width: int, output: TargetOutput) -> None:
        """The drafter's part of a width, where it has a choice."""
        if self._chooses:
            self._draft_graphs.run(width, partial(self._absorb_padded, width, output.features))

    def _padded(self, width: int) -> TargetOutput:
        window = Window.from_start(1, width, self._target.device)
        output = self._target.forward(self._tokens[:, :width], window, self._cache)
        if not self._chooses:
            self._absorb(window, output.features)
        return output

    def _absorb_padded(self, width: int, features: Tensor | None) -> None:
        self._absorb(Window.from_start(1, width, self._target.device), features)

    def _absorb(self, window: Window, features: Tensor | None) -> None:
        if self._drafting is not None and features is not None:
            pairs: Tensor = self._tokens[:, 1 : window.width + 1]
            self._drafting.absorb_prompt(pairs, features, window, self._choice, self._draft_cache)
