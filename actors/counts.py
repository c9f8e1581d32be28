"""What a replica's parts count. Light to import: who only watches replicas loads no models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class IndexCounts:
    lookups: int = 0
    hits: int = 0
    late: int = 0  # batches that missed the deadline
    failed: int = 0  # calls that raised
    skipped: int = 0  # not asked for: breaker open, or too many waiting
    points_written: int = 0
    points_dropped: int = 0
    breaker_opened: int = 0

    @property
    def failures(self) -> int:
        return self.late + self.failed


@dataclass(slots=True)
class TraceCounts:
    sent: int = 0
    dropped_full: int = 0  # oldest first, because the buffer was full
    dropped_failed: int = 0  # the aligner was absent, died with the trace, or refused it
    queued: int = 0
    queued_bytes: int = 0

    @property
    def dropped(self) -> int:
        return self.dropped_full + self.dropped_failed


@dataclass(slots=True)
class FollowerCounts:
    version: int = 0
    swaps: int = 0
    rollbacks: int = 0  # swaps to a lower version
    polls: int = 0
    registry_failures: int = 0
    missing: int = 0  # polls that found the wanted version's bytes gone
    refused: int = 0  # versions that did not pass the checks
    not_applied: int = 0  # swaps that the engine did not get to
