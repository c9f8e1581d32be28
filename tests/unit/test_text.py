"""Streamed text: stop strings are met wherever they lie, and single tokens are shown as they are."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from evospec.engine.text import TextStream
from evospec.engine.token_text import PieceTokenizer, TokenTexts
from tests.tiny import tiny_tokenizer

TOKENIZER = cast(PieceTokenizer, tiny_tokenizer())
# Few characters, so that stop strings occur, overlap and repeat; some of several tokens.
TEXTS = st.text(alphabet="abc\né🙂", max_size=24)
STOPS = st.lists(st.text(alphabet="abc\né🙂", min_size=1, max_size=4), max_size=4)


def cut_at_stop(text: str, stops: list[str]) -> str:
    """Reads one character after the other until some stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


def tokens_of(text: str) -> list[int]:
    return list(tiny_tokenizer()(text).input_ids)


@given(TEXTS, STOPS, st.lists(st.integers(1, 5)))
def test_stop_strings_cut_alike_wherever_chunks_end(text: str, stops: list[str], sizes: list[int]) -> None:
    tokens, stream = tokens_of(text), TextStream(TOKENIZER, stops)
    shown = ""
    while tokens and not stream.stopped:
        size = sizes.pop() if sizes else 1
        delta = stream.push(tokens[:size])
        shown, tokens = shown + delta.text, tokens[size:]
        # What was shown is never taken back, and nothing of a stop string is among it.
        assert cut_at_stop(text, stops).startswith(shown)
    if not stream.stopped:
        shown += stream.finish().text
    assert shown == cut_at_stop(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


@given(TEXTS, STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    tokens, stream = tokens_of(text), TextStream(TOKENIZER, stops)
    shown = stream.push(tokens).text
    if not stream.stopped:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@given(st.text(max_size=8))
def test_the_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    found = [TokenTexts(TOKENIZER).of(token) for token in tokens_of(text)]
    assert b"".join(token.raw or b"" for token in found) == text.encode()
    assert all(token.raw is not None and "\ufffd" not in token.text for token in found)


def test_tokens_that_differ_look_different() -> None:
    texts = TokenTexts(TOKENIZER)
    assert len({texts.of(token).text for token in range(260)}) == 260
    assert texts.of(256).text == "<|end|>"
