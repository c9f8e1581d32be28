"""The semantic source: what context a request is in, and which long-tail tokens it used.

The engine only makes look-ups and points; searching and storing them is done by
whoever owns the engine, so that a slow index never delays a cycle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from evospec.config import SemanticConfig
from evospec.engine.request import Request
from evospec.wire import IndexPoint


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A request's context, to be searched for: unit vector [hidden], float32."""

    request_id: str
    tenant: str
    vector: np.ndarray


@dataclass(slots=True)
class _Context:
    """Decayed mean of a request's last hidden states, and the tokens it used."""

    request: Request
    vector: Tensor
    prompt_vector: Tensor
    since_lookup: int = 0
    used: Counter[int] = field(default_factory=Counter)


class SemanticSource:
    """Tracks the context of running requests; yields look-ups and, when they finish, points.

    The embedding of a context is the mean of the target's last hidden states over
    the prompt, then an average that decays with `refresh_tokens`.
    """

    def __init__(self, config: SemanticConfig, core: Sequence[int], target_fingerprint: str) -> None:
        self._config = config
        self._core = frozenset(core)
        self._target = target_fingerprint
        self._decay = 0.5 ** (1.0 / config.refresh_tokens)
        self._contexts: dict[str, _Context] = {}
        self._lookups: list[Lookup] = []
        self._points: list[IndexPoint] = []

    def admit(self, request: Request, hidden: Tensor) -> None:
        """Starts a request from its prompt's last hidden states [positions, hidden]."""
        mean = hidden.float().mean(dim=0)
        context = _Context(request, vector=mean, prompt_vector=mean)
        context.used.update(request.prompt_ids)
        self._contexts[request.id] = context
        self._look_up(context)

    def emitted(self, request_id: str, tokens: Sequence[int], hidden: Tensor) -> None:
        """Adds emitted tokens and the hidden states they came from [tokens, hidden]."""
        context = self._contexts[request_id]
        context.used.update(tokens)
        keep = self._decay ** len(tokens)
        context.vector = context.vector * keep + hidden.float().mean(dim=0) * (1.0 - keep)
        context.since_lookup += len(tokens)
        if context.since_lookup >= self._config.refresh_tokens:
            self._look_up(context)

    def finish(self, request_id: str, *, learn: bool) -> None:
        """Forgets a request; with `learn`, its long-tail tokens become a point."""
        context = self._contexts.pop(request_id, None)
        if context is None or not learn:
            return
        tail = Counter({token: count for token, count in context.used.items() if token not in self._core})
        chosen = tail.most_common(self._config.tokens_per_point)
        if not chosen:
            return
        self._points.append(
            IndexPoint(
                vector=_unit(context.prompt_vector),
                token_ids=tuple(token for token, _ in chosen),
                weights=tuple(float(count) for _, count in chosen),
                tenant=context.request.tenant,
                target=self._target,
            )
        )

    def take_lookups(self) -> list[Lookup]:
        taken, self._lookups = self._lookups, []
        return taken

    def take_points(self) -> list[IndexPoint]:
        taken, self._points = self._points, []
        return taken

    def _look_up(self, context: _Context) -> None:
        context.since_lookup = 0
        request = context.request
        # A newer look-up of the same request replaces one that nobody took.
        self._lookups = [lookup for lookup in self._lookups if lookup.request_id != request.id]
        self._lookups.append(Lookup(request.id, request.tenant, _unit(context.vector)))


def _unit(vector: Tensor) -> np.ndarray:
    array: np.ndarray = torch.nn.functional.normalize(vector, dim=0).cpu().numpy().astype(np.float32)
    return array
