"""The decoding engine: requests in, tokens out, one step at a time, with no I/O of its own.

Its owner calls `step` in a loop from one thread, drains the outboxes (traces,
look-ups, points) and delivers what comes back (adapters, retrieved tokens)
between steps.
"""

from __future__ import annotations

from evospec.align.trace import Trace
from evospec.config import EngineConfig
from evospec.engine.admission import check_request
from evospec.engine.observer import Learners
from evospec.engine.request import Request, StepOutput
from evospec.engine.runner import USUAL_LENGTH
from evospec.engine.sizes import Sizes
from evospec.engine.state import RequestState
from evospec.engine.stepper import Stepper
from evospec.errors import InvalidRequestError, WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import AdapterSlot, StagedAdapter
from evospec.models.drafter import Drafter
from evospec.models.target import Target
from evospec.stopwatch import Stopwatch
from evospec.vocab.semantic import Lookup
from evospec.wire import Fingerprints, IndexPoint, TokenHits

NOBODY = Learners()


class Engine:
    """Continuous batching over one target and, unless decoding is plain, one drafter.

    Args:
        learners: who is told what cycles teach.
        sizes: how cycles are rounded; None: as the device needs it.
        adapters: kinds of traffic that there is room for adapters of.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        config: EngineConfig,
        fingerprints: Fingerprints,
        *,
        learners: Learners = NOBODY,
        sizes: Sizes | None = None,
        adapters: int = 0,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.fingerprints = fingerprints
        self.vocabulary = learners.vocabulary
        self.max_length = min(config.max_length, target.max_length)
        self._stepper = Stepper(target, drafter, config, self.max_length, learners, sizes, adapters)
        self.stats = self._stepper.stats
        self._scheduler = self._stepper.scheduler
        self._learners = learners
        self._adapter = AdapterSlot(drafter, self._stepper.runner.bank) if drafter is not None else None

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to do: requests, or what they left to learn from."""
        return self._stepper.has_work

    @property
    def has_requests(self) -> bool:
        """Whether any request waits for tokens."""
        return self._scheduler.has_work

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far; under a stopwatch, those with its marks."""
        return self._stepper.runner.captures

    @property
    def cache_bytes(self) -> int:
        """Memory of the target's and the drafter's keys and values."""
        slots = self._stepper.runner.slots
        caches = [cache for cache in (slots.cache, slots.draft_cache) if cache is not None]
        return sum(tensor.nbytes for cache in caches for tensor in (*cache.keys, *cache.values))

    def prepare(self, longest: int = USUAL_LENGTH) -> None:
        """On a CUDA device: captures graphs and compiles kernels for cycles of usual sizes, which takes
        some seconds; call before traffic. Elsewhere there is nothing to prepare.

        Args:
            longest: tokens of the longest request to prepare for, prompt and answer.
        """
        self._stepper.prepare(longest)

    def admit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InvalidRequestError: it can never be served.
        """
        check_request(request, self.max_length, self.target.vocab_size)
        if self._scheduler.find(request.id) is not None:
            raise InvalidRequestError(f"request id {request.id} is running already", "id")
        self._scheduler.enqueue(RequestState(request, list(request.prompt_ids)))
        self._stepper.update_gauges()

    def cancel(self, request_id: str) -> None:
        """Ends a request at the next step; unknown ids are ignored: it may just have finished."""
        state = self._scheduler.find(request_id)
        if state is not None:
            state.cancelled = True

    def stage_adapter(self, adapter: AdapterWeights) -> StagedAdapter:
        """Checks an adapter and prepares it for `swap_adapter`; any thread may call it, during steps too.

        Raises:
            WireError: it does not fit, or there is no drafter.
        """
        if self._adapter is None:
            raise WireError("decoding is plain here: there is no drafter to adapt")
        return self._adapter.stage(adapter)

    def swap_adapter(self, adapter: StagedAdapter | AdapterWeights | None) -> None:
        """Writes an adapter into the drafter (None: the base), and gives its core and successor tables to
        the vocabulary; call between steps.

        Running requests go on; see `AdapterSlot` for what a swap means to them.

        Raises:
            WireError: it was not staged and does not fit; the drafter is unchanged.
        """
        if self._adapter is None:
            return
        swapped = self._adapter.swap(adapter)
        if self.vocabulary is not None:
            self.vocabulary.recore(None if swapped.core_ranks is None else swapped.core_ranks.numpy())
            self.vocabulary.adopt(swapped.successors)
        self._stepper.adapted(swapped.version)

    def offer_hits(self, request_id: str, hits: TokenHits) -> None:
        """Delivers retrieved tokens; late ones, for a finished request, are dropped."""
        if self._learners.vocabulary is not None and self._scheduler.find(request_id) is not None:
            self._learners.vocabulary.retrieved(hits.token_ids, hits.weights)
            self._stepper.offered()

    def take_traces(self) -> list[Trace]:
        return self._learners.recorder.take() if self._learners.recorder is not None else []

    def take_lookups(self) -> list[Lookup]:
        return self._learners.semantic.take_lookups() if self._learners.semantic is not None else []

    def take_points(self) -> list[IndexPoint]:
        return self._learners.semantic.take_points() if self._learners.semantic is not None else []

    def watch(self, stopwatch: Stopwatch) -> None:
        """Shows a stopwatch the parts of every cycle from now on; call between steps."""
        self._stepper.watch(stopwatch)

    def step(self) -> list[StepOutput]:
        """Processes prompts, as much as one chunk of them, and one cycle; returns what was emitted.

        Without requests it learns a part of what they left, which takes about as long as a cycle.
        """
        return self._stepper.step()
