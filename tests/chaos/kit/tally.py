"""What became of many requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.kit.known_prompts import KnownPrompt
from tests.chaos.kit.streaming_client import Answer

MOST_EXAMPLES = 5


@dataclass(slots=True)
class Tally:
    """Sums over requests that have ended.

    Attributes:
        failed: broke off after their first token.
        untold: of these, those that ended without an error that says so.
        lost: failed although nothing had been shown, and asking again did not help.
        retried: attempts made again, by cause.
        compared, wrong: tokens held against the expected ones, and those that differ.
        versions: requests by the adapter version that their usage names.
    """

    sent: int = 0
    complete: int = 0
    failed: int = 0
    untold: int = 0
    lost: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    wrong: int = 0
    gaps_s: list[float] = field(default_factory=list)
    versions: Counter[int] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, prompt: KnownPrompt, answer: Answer) -> None:
        wrong = answer.wrong_tokens(prompt.expected)
        self.sent += 1
        self.complete += answer.ending == "complete"
        self.failed += answer.ending == "broken"
        self.untold += answer.ending == "broken" and not answer.told
        self.lost += answer.ending == "lost"
        self.retried += answer.retries
        self.compared += len(answer.tokens)
        self.wrong += wrong
        self.gaps_s += answer.gaps_s
        if answer.version is not None:
            self.versions[answer.version] += 1
        if (wrong or answer.ending != "complete") and len(self.examples) < MOST_EXAMPLES:
            self.examples.append(f"{answer.ending}, {wrong} wrong tokens: {answer.reason}")
