"""How fast a turn was: kept in results, so that any two arms can be compared on the same batches."""

from __future__ import annotations

from evospec.bench.record import Record


class TurnSpeed(Record):
    """One arm on one batch.

    Attributes:
        part: of a paper bench; empty elsewhere.
        batch: requests decoded together.
        number: of the batch, the same for all arms.
        decode_tokens, decode_seconds: without prompt processing and the tokens that it yields.
    """

    part: str = ""
    arm: str
    domain: str
    batch: int
    number: int
    tokens: int
    seconds: float
    decode_tokens: int
    decode_seconds: float

    @property
    def tokens_per_s(self) -> float:
        """From the prompts to the last token."""
        return self.tokens / self.seconds

    @property
    def decode_tokens_per_s(self) -> float:
        """0 when nothing was left to decode."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0
