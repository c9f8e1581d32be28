"""Where a cycle's time goes: the seam through which a profile looks into the engine."""

from __future__ import annotations

from typing import Literal, Protocol

# What each part holds, on a GPU only where the device waits for it or works on it:
# vocabulary: learning from the last cycle, and writing rows; `CudaStopwatch` tells what is hidden.
# host: all that is no other part.
CyclePart = Literal["draft_layer", "draft_head", "target_layers", "target_head", "vocabulary", "host"]


class Stopwatch(Protocol):
    """Told by the engine what it is about to do."""

    def mark(self, part: CyclePart) -> None:
        """All that runs from here to the next mark belongs to `part`.

        Called while a CUDA graph is captured too, and then not again when it is replayed.
        """
        ...


class NoStopwatch:
    """Measures nothing."""

    def mark(self, part: CyclePart) -> None:
        pass


NO_STOPWATCH = NoStopwatch()
