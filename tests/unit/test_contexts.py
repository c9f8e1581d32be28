"""What the semantic index is searched by: means of hidden states."""

from __future__ import annotations

import torch

from evospec.engine.contexts import ContextVectors
from evospec.engine.host_copy import fetch
from evospec.engine.request import Request
from evospec.engine.state import RequestState

CPU = torch.device("cpu")

PROMPT = 7  # tokens


def prompting(request_id: str, slot: int) -> RequestState:
    tokens = list(range(PROMPT))
    return RequestState(Request(request_id, tuple(tokens)), tokens=tokens, slot=slot)


def test_a_prompt_counts_the_same_in_parts_and_whatever_came_before_it() -> None:
    contexts = ContextVectors(2, 4, places=3, decay=0.9, device=CPU)
    prompt = torch.randn(PROMPT, 4, generator=torch.Generator().manual_seed(1))
    contexts.read(prompting("earlier", slot=0), 100 * prompt[:3])
    state = prompting("r", slot=0)
    for part in prompt.split([4, 2, 1]):
        contexts.read(state, part)
        state.prefilled += len(part)
    torch.testing.assert_close(contexts.means[0], prompt.mean(0))
    contexts.read(prompting("r", slot=1), prompt[:2])  # another request, though of the same name
    torch.testing.assert_close(contexts.means[1], prompt[:2].mean(0))


def test_contexts_decay_by_what_is_emitted() -> None:
    contexts = ContextVectors(3, 4, places=3, decay=0.9, device=CPU)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randn(5, 4, generator=generator)
    contexts.read(prompting("r", slot=1), prompt)
    hidden = torch.randn(2, 3, 4, generator=generator)
    contexts.advance(hidden, torch.tensor([0, 2]))
    expected = prompt.mean(0) * 0.9**2 + hidden[1, :2].mean(0) * (1 - 0.9**2)
    torch.testing.assert_close(contexts.means[1], expected)
    assert contexts.means[0].tolist() == [0.0] * 4  # nothing emitted, nothing learned
    contexts.move(1, 2)
    vector = fetch(contexts.vector(2))
    contexts.means.zero_()
    torch.testing.assert_close(vector.tensor(), expected / expected.norm())
