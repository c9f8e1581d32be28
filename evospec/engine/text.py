"""Token ids to text, streamed: whole characters only, stop strings cut exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str | list[str]: ...


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text to show; `stopped` once a stop string was met (and cut off)."""

    text: str
    stopped: bool = False


class TextStream:
    """Turns one request's tokens into text deltas.

    Text that may still change (an incomplete character, or the beginning of a
    stop string) is held back until it is settled.
    """

    __slots__ = ("_held", "_prefix", "_read", "_stops", "_tokenizer", "_tokens", "stopped")

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop)
        self._tokens: list[int] = []
        self._prefix = 0  # decoding restarts here: a token's text depends on its left neighbour
        self._read = 0  # tokens before this are in the text already
        self._held = ""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> TextDelta:
        self._tokens.extend(tokens)
        return self._settle(self._new_text(), final=False)

    def finish(self) -> TextDelta:
        """Releases what is held back; call once, at the end."""
        return self._settle(self._new_text(final=True), final=True)

    def _new_text(self, *, final: bool = False) -> str:
        before = self._decode(self._tokens[self._prefix : self._read])
        after = self._decode(self._tokens[self._prefix :])
        if not final and after.endswith(REPLACEMENT):
            return ""
        self._prefix = self._read
        self._read = len(self._tokens)
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _settle(self, fresh: str, *, final: bool) -> TextDelta:
        if self.stopped:
            return TextDelta("", stopped=True)
        text = self._held + fresh
        # The stop string that is complete first, the longest of several: however the text is cut into deltas.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, cut = min(found)
            self.stopped = True
            self._held = ""
            return TextDelta(text[:cut], stopped=True)
        keep = 0 if final else self._overlap(text)
        self._held = text[len(text) - keep :]
        return TextDelta(text[: len(text) - keep])

    def _overlap(self, text: str) -> int:
        """Length of the longest suffix of `text` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if stop.startswith(text[-length:]):
                    longest = length
                    break
        return longest
