"""The same requests given to an engine in this process: what serving is measured against."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from services.load.timing import Timed


class DirectEngine:
    """Keeps so many requests in an engine until all are done; nothing else runs in this thread."""

    def __init__(self, engine: Engine, sampling: SamplingParams) -> None:
        self._engine = engine
        self._sampling = sampling
        self._number = 0

    def run(self, prompts: Sequence[tuple[int, ...]], streams: int) -> list[Timed]:
        """In the order in which requests end. Their times are those of `time.perf_counter`."""
        waiting = deque(prompts)
        running: dict[str, Timed] = {}
        done: list[Timed] = []
        while waiting or running:
            while waiting and len(running) < streams:
                request = self._request(waiting.popleft())
                running[request.id] = Timed(time.perf_counter())
                self._engine.admit(request)
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                timed = running[output.request_id]
                timed.add(len(output.tokens), now)
                if output.finish_reason is not None:
                    done.append(running.pop(output.request_id))
            self._empty_outboxes()
        return done

    def _request(self, prompt_ids: tuple[int, ...]) -> Request:
        self._number += 1
        return Request(f"direct-{self._number}", prompt_ids, self._sampling)

    def _empty_outboxes(self) -> None:
        self._engine.take_traces()
        self._engine.take_lookups()
        self._engine.take_points()
