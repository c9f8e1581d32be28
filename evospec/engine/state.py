"""What the engine remembers of one running request."""

from __future__ import annotations

from dataclasses import dataclass

from evospec.engine.request import FinishReason, Request


@dataclass(slots=True)
class RequestState:
    """Host-side state of an admitted request; the device's part is in `BatchState`.

    Attributes:
        tokens: prompt and emitted tokens.
        prefilled: prompt positions already in the target's cache.
        pending: confirmed pairs whose features wait to be written to the drafter's cache.
        traced: whether what it emits is recorded; known once the prompt is complete.
    """

    request: Request
    tokens: list[int]
    slot: int = -1
    prefilled: int = 0
    pending: int = 0
    traced: bool = False
    cancelled: bool = False
    finish: FinishReason | None = None

    @property
    def running(self) -> bool:
        """Whether tokens are still wanted."""
        return self.finish is None and not self.cancelled

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def emitted(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        return self.request.sampling.max_tokens - self.emitted

    @property
    def cached(self) -> int:
        """Positions of the target's cache that count while decoding."""
        return len(self.tokens) - 1

    def accept(self, tokens: list[int], eos_ids: frozenset[int]) -> list[int]:
        """Appends emitted tokens up to the first stop; returns those that were kept."""
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in eos_ids and not self.request.sampling.ignore_eos:
                self.finish = "stop"
            elif len(kept) == self.remaining:
                self.finish = "length"
            if self.finish is not None:
                break
        self.tokens.extend(kept)
        return kept
