"""What a stream that changes its topic shows: one record per request, and one per arm after switches."""

from __future__ import annotations

from pydantic import Field

from evospec.bench.record import Record

RECOVERED = 0.97  # coverage at which an arm has recovered from a switch
BUCKET = 20  # generated tokens that coverage is given over


class StreamRequest(Record):
    """One request of the stream, by one arm.

    Attributes:
        place: in the stream, from 0.
        since_switch: requests since the topic changed, this one included.
        coverage: share of its tokens that were active; so is `first_coverage`, of its first 20 tokens.
            None when no token could be held against the active rows.
        acceptance_length: tokens per cycle, the bonus token included.
        active_rows: mean over its cycles.
    """

    arm: str
    place: int
    topic: str
    since_switch: int
    tokens: int
    coverage: float | None
    first_coverage: float | None
    acceptance_length: float
    active_rows: float
    tokens_per_s: float


class NthRequest(Record):
    """The n-th requests after switches, taken together.

    Attributes:
        coverage: of all their tokens; `first_coverage` of the first 20 of each.
        acceptance_length: over all their drafts.
    """

    number: int
    requests: int
    coverage: float | None
    first_coverage: float | None
    acceptance_length: float


class AfterSwitch(Record):
    """One arm after all switches of a stream; its first topic is none.

    Attributes:
        requests: by their number after the switch.
        buckets: coverage of each 20 generated tokens since the switch, over all switches; None where
            there were none.
        recovered_after: tokens generated since the switch before the first of these that reach 0.97;
            None when none does.
    """

    arm: str
    switches: int
    requests: tuple[NthRequest, ...]
    buckets: tuple[float | None, ...] = Field(description=f"Of {BUCKET} tokens each.")
    recovered_after: int | None


class Stream(Record):
    """Attributes: recovered, bucket_tokens: what `AfterSwitch` was told by."""

    recovered: float = RECOVERED
    bucket_tokens: int = BUCKET
    requests: tuple[StreamRequest, ...]
    arms: tuple[AfterSwitch, ...]
