"""Text written by the target at large batch: rows are refilled as they end, and nothing waits for the host
but once in `_INTERVAL` steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from evospec.models.graphs import Graphs, round_span
from evospec.models.kv_cache import Window
from evospec.models.target import Target

T = TypeVar("T")

_INTERVAL = 16  # steps between looks at which rows have ended
_PREFILL_TOKENS = 32_768  # prompt tokens processed at once, padding included


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
        self._prompts: list[Prompt[T] | None] = [None] * rows
        self._reach = [0] * rows  # positions a row may have cached by now

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
        while not over():
            if not self.busy:
                yield from ended
                ended = []
            self._refill(chain(_drained(ahead), prompts))
            if not self.busy:
                return
            for _ in range(_INTERVAL):
                self._advance()
            # What the host does from here up to `_collect`, it does while the device works.
            yield from ended
            ahead.extend(islice(prompts, max(len(ended) - len(ahead), 0)))
            ended = self._collect()
        yield from ended

    def _refill(self, prompts: Iterator[Prompt[T]]) -> None:
        """Starts prompts in the rows that are free."""
        free = [row for row, prompt in enumerate(self._prompts) if prompt is None]
        chosen: list[tuple[int, Prompt[T]]] = list(zip(free, prompts, strict=False))
        chosen.sort(key=lambda item: len(item[1].tokens))
        group: list[tuple[int, Prompt[T]]] = []
        for row, prompt in chosen:
            if group and (len(group) + 1) * len(prompt.tokens) > _PREFILL_TOKENS:
                self._prefill(group)
                group = []
            group.append((row, prompt))
        if group:
            self._prefill(group)

    def _prefill(self, group: Sequence[tuple[int, Prompt[T]]]) -> None:
        """Writes prompts but for their last tokens into the rows' caches, and starts the rows."""
        device = self._target.device
        rows = torch.tensor([row for row, _ in group], device=device)
        lengths = [len(prompt.tokens) - 1 for _, prompt in group]
        width = max(lengths)
        if width:
            tokens = torch.zeros(len(group), width, dtype=torch.int64)
            for place, (_, prompt) in enumerate(group):
                tokens[place, : lengths[place]] = torch.tensor(prompt.tokens[:-1])
            apart = self._target.new_cache(len(group), width)
            self._target.forward(tokens.to(device), Window.from_start(len(group), width, device), apart)
            self._cache.adopt(apart, rows)
        for buffer, values in (
            (self._last, [prompt.tokens[-1] for _, prompt in group]),
            (self._cached, lengths),
            (self._limit, [prompt.limit for _, prompt in group]),
            (self._heat, [prompt.heat for _, prompt in group]),
        ):
            buffer[rows] = torch.tensor(values, dtype=buffer.dtype, device=device)
        self._count[rows] = 0
        self._alive[rows] = True
        for (row, prompt), length in zip(group, lengths, strict=True):
            self._prompts[row] = prompt
            self._reach[row] = length

    def _advance(self) -> None:
        self._reach = [reach + 1 for reach in self._reach]
        longest = max(
            reach for reach, prompt in zip(self._reach, self._prompts, strict=True) if prompt is not None
        )
        longest = min(longest, self._cache.positions)  # rows that have ended since are counted on
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
        return self._collect()

    def _collect(self) -> list[Continuation[T]]:
        """Takes out the rows that have ended."""
        alive, counts = self._alive.tolist(), self._count.tolist()
        ended = [row for row, prompt in enumerate(self._prompts) if prompt is not None and not alive[row]]
        if not ended:
            return []
        written = self._written[torch.tensor(ended, device=self._written.device)].tolist()
        results = []
        for row, tokens in zip(ended, written, strict=True):
            prompt = self._prompts[row]
            if prompt is not None:
                results.append(Continuation(prompt, tokens[: counts[row]]))
            self._prompts[row] = None
        for row, reach in enumerate(self._reach):
            prompt = self._prompts[row]
            self._reach[row] = len(prompt.tokens) - 1 + counts[row] if prompt is not None else reach
        return results


def _drained(items: deque[Prompt[T]]) -> Iterator[Prompt[T]]:
    while items:
        yield items.popleft()
