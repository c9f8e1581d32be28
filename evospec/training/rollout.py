"""Text written by the target at large batch: rows are refilled as they end, and the device waits for nobody.

What rows have written is looked at every `_INTERVAL` steps, while the next steps are under way already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from evospec.models.graphs import Graphs, round_span
from evospec.models.kv_cache import Window
from evospec.models.target import Target

T = TypeVar("T")

_INTERVAL = 8  # steps between looks at which rows have ended; those wait for 12 steps in the mean
_NEVER = -(1 << 40)  # positions cached in a row that writes nothing
_PREFILL_TOKENS = 32_768  # prompt tokens processed at once, padding included
_RUN_TOKENS = 1_536  # prompt tokens that take as long as beginning another run


@dataclass(frozen=True, slots=True)
class Prompt(Generic[T]):
    """What to continue: token ids, temperature (0: greedy), most tokens to write, and whose it is."""

    tokens: Sequence[int]
    heat: float
    limit: int
    owner: T


@dataclass(frozen=True, slots=True)
class Continuation(Generic[T]):
    """New tokens; closed by an end-of-sequence token unless the limit was reached."""

    prompt: Prompt[T]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class _Look:
    """What rows had written after so many steps, on its way to the host.

    Attributes:
        steps: of the rollout, until then.
        alive, count, written: as in `Rollout`.
        arrived: when they are there; None where nothing has to be sent.
    """

    steps: int
    alive: Tensor
    count: Tensor
    written: Tensor
    arrived: torch.cuda.Event | None


class _Looks:
    """Takes looks without waiting for them; the last one but one must have been read."""

    __slots__ = ("_places", "_turn")

    def __init__(self, alive: Tensor, count: Tensor, written: Tensor) -> None:
        on_gpu = alive.is_cuda
        like = (alive, count, written)
        self._places = [
            [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu) for tensor in like]
            for _ in range(2)
        ]
        self._turn = 0

    def take(self, steps: int, alive: Tensor, count: Tensor, written: Tensor) -> _Look:
        self._turn = 1 - self._turn
        places = self._places[self._turn]
        for place, tensor in zip(places, (alive, count, written), strict=True):
            place.copy_(tensor, non_blocking=True)
        arrived = None
        if alive.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        return _Look(steps, places[0], places[1], places[2], arrived)


class Sampler(Protocol):
    """Chooses one token a row, int64 [rows], from scores [rows, vocab] at temperatures [rows]."""

    def __call__(self, scores: Tensor, heat: Tensor) -> Tensor: ...


class TorchSampler:
    """The Gumbel-max trick, plainly."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(self, scores: Tensor, heat: Tensor) -> Tensor:
        scores = scores.float()
        noise = torch.empty_like(scores).exponential_(generator=self._generator).log_().neg_()
        return (scores + noise * heat[:, None]).argmax(dim=-1)


class KernelSampler:
    """The same in one pass, from counted random numbers: a captured graph draws anew at each replay."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._seed = seed
        self._clock = torch.zeros(1, dtype=torch.int64, device=device)

    def __call__(self, scores: Tensor, heat: Tensor) -> Tensor:
        from evospec.kernels.sample import sample  # Triton comes with CUDA builds of PyTorch only

        self._clock += 1
        return sample(scores, heat, self._clock, self._seed)


class Rollout(Generic[T]):
    """Continues prompts, `rows` at a time.

    The last token of a prompt is left to the first step, so that prompts need no logits.

    Args:
        positions: longest prompt and continuation together.
        longest: most tokens a prompt's limit may ask for.
    """

    def __init__(self, target: Target, rows: int, positions: int, longest: int, seed: int) -> None:
        device = target.device
        self._target = target
        self._cache = target.new_cache(rows, positions)
        self._graphs: Graphs[None] = Graphs(device)
        sampler = KernelSampler if device.type == "cuda" else TorchSampler
        self._sampler: Sampler = sampler(device, seed)
        self._eos = torch.tensor(sorted(target.eos_ids), device=device)
        self._last = torch.zeros(rows, dtype=torch.int64, device=device)
        self._cached = torch.zeros(rows, dtype=torch.int64, device=device)
        self._count = torch.zeros(rows, dtype=torch.int64, device=device)
        self._limit = torch.zeros(rows, dtype=torch.int64, device=device)
        self._heat = torch.zeros(rows, device=device)
        self._alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self._written = torch.zeros(rows, longest, dtype=torch.int64, device=device)
        self._looks = _Looks(self._alive, self._count, self._written)
        self._steps = 0
        self._prompts: list[Prompt[T] | None] = [None] * rows
        self._began = np.zeros(rows, dtype=np.int64)  # steps before a row's first
        self._cached_at = np.full(rows, _NEVER)  # positions cached, less the steps until then

    @property
    def busy(self) -> int:
        """Rows that are writing."""
        return sum(prompt is not None for prompt in self._prompts)

    @torch.inference_mode()
    def generate(
        self, prompts: Iterator[Prompt[T]], over: Callable[[], bool] = lambda: False
    ) -> Iterator[Continuation[T]]:
        """Yields continuations some steps after they end; takes the next prompts as rows become free.

        Args:
            over: asked every few steps; True ends it, with rows left unfinished.
        """
        ended: list[Continuation[T]] = []
        ahead: deque[Prompt[T]] = deque()
        look: _Look | None = None
        while not over():
            if not self.busy:
                yield from ended
                ended = []
            self._refill(chain(_drained(ahead), prompts))
            if not self.busy:
                return
            for _ in range(_INTERVAL):
                self._advance()
            last, look = look, self._looks.take(self._steps, self._alive, self._count, self._written)
            # All that the host does, it does while the device works.
            yield from ended
            ahead.extend(islice(prompts, max(len(ended) - len(ahead), 0)))
            ended = [] if last is None else self._collect(last)
        yield from ended

    def _refill(self, prompts: Iterator[Prompt[T]]) -> None:
        """Starts prompts in the rows that are free."""
        free = [row for row, prompt in enumerate(self._prompts) if prompt is None]
        chosen: list[tuple[int, Prompt[T]]] = list(zip(free, prompts, strict=False))
        chosen.sort(key=lambda item: len(item[1].tokens))
        for group in _groups([len(prompt.tokens) for _, prompt in chosen]):
            self._prefill(chosen[group])

    def _prefill(self, group: Sequence[tuple[int, Prompt[T]]]) -> None:
        """Writes prompts but for their last tokens into the rows' caches, and starts the rows."""
        device = self._target.device
        lengths = [len(prompt.tokens) - 1 for _, prompt in group]
        width = max(lengths)
        # A column each: row, last token, length, limit; then the prompt's other tokens.
        table = np.zeros((len(group), 4 + width), dtype=np.int64)
        for place, (row, prompt) in enumerate(group):
            table[place, :4] = row, prompt.tokens[-1], lengths[place], prompt.limit
            table[place, 4 : 4 + lengths[place]] = prompt.tokens[:-1]
        sent = _send(torch.from_numpy(table), device)
        rows, last, cached, limit = sent[:, :4].unbind(dim=1)
        if width:
            apart = self._target.new_cache(len(group), width)
            self._target.forward(
                sent[:, 4:].contiguous(), Window.from_start(len(group), width, device), apart
            )
            self._cache.adopt(apart, rows)
        # Assignments by index would wait for the device.
        self._last.index_copy_(0, rows, last)
        self._cached.index_copy_(0, rows, cached)
        self._limit.index_copy_(0, rows, limit)
        self._heat.index_copy_(0, rows, _send(torch.tensor([prompt.heat for _, prompt in group]), device))
        self._count.index_fill_(0, rows, 0)
        self._alive.index_fill_(0, rows, True)
        for (row, prompt), length in zip(group, lengths, strict=True):
            self._prompts[row] = prompt
            self._began[row] = self._steps
            self._cached_at[row] = length - self._steps

    def _advance(self) -> None:
        self._steps += 1
        # Rows that have ended since the last look are counted on.
        longest = min(int(self._cached_at.max()) + self._steps, self._cache.positions)
        on_gpu = self._target.device.type == "cuda"
        span = round_span(longest, self._cache.positions) if on_gpu else longest
        state = (self._last, self._cached, self._count, self._alive)
        self._graphs.run(span, lambda: self._step(span), state)

    def _step(self, span: int) -> None:
        """One token for every row; rows that have ended go through the motions."""
        window = Window(0, self._cached, 1, span)
        hidden = self._target.forward(self._last[:, None], window, self._cache).hidden[:, 0]
        choice = self._sampler(self._target.scores(hidden), self._heat)
        place = self._count.clamp(max=self._written.shape[1] - 1)[:, None]
        kept = self._written.gather(1, place)
        self._written.scatter_(1, place, torch.where(self._alive[:, None], choice[:, None], kept))
        self._count += self._alive
        self._cached += self._alive
        self._alive &= ~torch.isin(choice, self._eos) & (self._count < self._limit)
        self._last.copy_(torch.where(self._alive, choice, self._last))

    def unfinished(self) -> list[Continuation[T]]:
        """Stops every row and returns what it has written so far."""
        self._alive.zero_()
        return self._collect(self._looks.take(self._steps, self._alive, self._count, self._written))

    def _collect(self, look: _Look) -> list[Continuation[T]]:
        """Takes out the rows that had ended; those that began later are not in it."""
        if look.arrived is not None:
            look.arrived.synchronize()
        alive, counts, written = look.alive.numpy(), look.count.numpy(), look.written.numpy()
        results = []
        for row in np.flatnonzero(~alive & (self._began < look.steps)).tolist():
            prompt = self._prompts[row]
            if prompt is not None:
                results.append(Continuation(prompt, written[row, : counts[row]].tolist()))
            self._prompts[row] = None
            self._cached_at[row] = _NEVER
        return results


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """It, on the device; does not wait for what the device does."""
    if device.type != "cuda":
        return tensor
    # The pinned allocator hands memory out again only when copies out of it are done.
    return tensor.pin_memory().to(device, non_blocking=True)


def _groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Cuts rising lengths into runs that are processed together, padded to the longest of each: another run
    begins where padding would take longer than that."""
    first, padding = 0, 0
    for place, length in enumerate(lengths):
        count = place - first
        padding += count * (length - lengths[place - 1]) if count else 0
        if count and (padding > _RUN_TOKENS or (count + 1) * length > _PREFILL_TOKENS):
            yield slice(first, place)
            first, padding = place, 0
    if lengths:
        yield slice(first, len(lengths))


def _drained(items: deque[Prompt[T]]) -> Iterator[Prompt[T]]:
    while items:
        yield items.popleft()
