"""What single tokens say, for people and programs that look at log-probabilities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from evospec.engine.text import REPLACEMENT, Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's byte fallback


class PieceTokenizer(Tokenizer, Protocol):
    """The part of a transformers tokenizer that is used here."""

    def convert_ids_to_tokens(self, ids: int) -> str: ...


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token's text and its UTF-8 bytes.

    A token that is a part of a character has the text `bytes:\\xe2\\x82`, as in OpenAI's API: tokens that
    differ then look different. `raw` is None where nobody knows its bytes.
    """

    text: str
    raw: bytes | None


class TokenTexts:
    """Texts of a tokenizer's tokens, each found once."""

    __slots__ = ("_found", "_tokenizer")

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._found: dict[int, TokenText] = {}

    def of(self, token: int) -> TokenText:
        found = self._found.get(token)
        if found is None:
            found = self._found[token] = self._find(token)
        return found

    def _find(self, token: int) -> TokenText:
        # Behind another one: some tokenizers drop the space that a text begins with.
        alone, twice = self._decode([token]), self._decode([token, token])
        text = twice[len(alone) :]
        if REPLACEMENT not in alone:
            return TokenText(text, text.encode())
        raw = _bytes_of(self._tokenizer.convert_ids_to_tokens(token))
        if raw is None:
            return TokenText(text, None)
        return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))


def _bytes_of(piece: str) -> bytes | None:
    """Bytes that a vocabulary's entry stands for, byte-level BPE or byte fallback."""
    fallback = _BYTE_PIECE.fullmatch(piece)
    if fallback is not None:
        return bytes.fromhex(fallback[1])
    if all(character in _BYTE_OF for character in piece):
        return bytes(_BYTE_OF[character] for character in piece)
    return None


def _byte_alphabet() -> dict[str, int]:
    """How byte-level BPE writes bytes (GPT-2): printable ones as themselves, others from U+0100 on."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
