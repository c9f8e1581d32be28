"""The semantic source: what context a request is in, and which long-tail tokens it called for.

A point is keyed by the mean of the target's last hidden states over the prompt, as they are. It holds the
long-tail tokens that the target emitted or nearly emitted, each once: hits then count in how many similar
contexts a token came up. Measured on held-out requests (docs/measurements.md): the tokens of the prompt cost
rows and cover nothing; the target's second choices add a third to what is covered; counts within a request
order tokens no better; last token, tail and middle layers retrieve as well as the mean, and so do vectors
with the mean of all contexts taken off or whitened, which every replica would have to agree on.

The engine only makes look-ups and points; searching and storing them is done by
whoever owns the engine, so that a slow index never delays a cycle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evospec.config import SemanticConfig
from evospec.engine.request import Request
from evospec.wire import IndexPoint


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A request's context, to be searched for: unit vector [hidden], float32."""

    request_id: str
    tenant: str
    vector: np.ndarray


LIKELY = 2  # the target's best tokens at a position that its request learns from


@dataclass(slots=True)
class _Context:
    """A request, the embedding of its prompt, and the tokens that came up in its answer, each as often."""

    request: Request
    prompt_vector: np.ndarray
    since_lookup: int = 0
    used: list[int] = field(default_factory=list)


class SemanticSource:
    """Counts what running requests use; yields look-ups and, when they finish, points.

    The embedding of a context is the mean of the target's last hidden states over the prompt, then an
    average that halves every `refresh_tokens`; the engine keeps it where the states are. Vectors are of
    unit length, float32 [hidden].
    """

    def __init__(self, config: SemanticConfig, core: Sequence[int], target_fingerprint: str) -> None:
        self._config = config
        self._core = frozenset(core)
        self._target = target_fingerprint
        self._contexts: dict[str, _Context] = {}
        self._lookups: list[Lookup] = []
        self._points: list[IndexPoint] = []

    @property
    def decay(self) -> float:
        """What a context keeps of itself at each token."""
        return float(0.5 ** (1.0 / self._config.refresh_tokens))

    def admit(self, request: Request, vector: np.ndarray) -> None:
        """Starts a request with the embedding of its prompt, and looks that up."""
        self._contexts[request.id] = _Context(request, vector)
        self.look_up(request.id, vector)

    def emitted(self, request_id: str, tokens: Sequence[int], best: Sequence[Sequence[int]]) -> bool:
        """Adds emitted tokens; returns whether it is time for `look_up`, which `asked` says is on its way.

        Args:
            best: the target's best tokens at the position of each, best first, any number.
        """
        context = self._contexts[request_id]
        context.used.extend(tokens)
        for choices in best:
            context.used.extend(choices[1:LIKELY])
        context.since_lookup += len(tokens)
        return context.since_lookup >= self._config.refresh_tokens

    def asked(self, request_id: str) -> None:
        """The next look-up is due only after as many tokens again."""
        self._contexts[request_id].since_lookup = 0

    def look_up(self, request_id: str, vector: np.ndarray) -> None:
        """Asks for the tokens of similar contexts; ignored when the request has finished."""
        context = self._contexts.get(request_id)
        if context is None:
            return
        # A newer look-up of the same request replaces one that nobody took.
        self._lookups = [lookup for lookup in self._lookups if lookup.request_id != request_id]
        self._lookups.append(Lookup(request_id, context.request.tenant, vector))

    def finish(self, request_id: str, *, learn: bool) -> None:
        """Forgets a request; with `learn`, its most frequent long-tail tokens become a point."""
        context = self._contexts.pop(request_id, None)
        if context is None or not learn:
            return
        tail = Counter(token for token in context.used if token not in self._core)
        chosen = tail.most_common(self._config.tokens_per_point)
        if not chosen:
            return
        self._points.append(
            IndexPoint(
                vector=context.prompt_vector,
                token_ids=tuple(token for token, _ in chosen),
                weights=(1.0,) * len(chosen),
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
