"""The decoding replica: an engine on a thread of its own, and what connects it to the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from ray import serve

from actors import metrics
from actors.adoption import Adoption, build_adapter
from actors.counts import FollowerCounts
from actors.engine_loop import EngineLoop, Outlets
from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, ModelLimits
from actors.handles import RemoteAligner, RemoteTokenIndex
from actors.index_client import IndexClient
from actors.names import ALIGNER, INDEX_HOST
from actors.series import Exporter, export_regularly
from actors.serve_logs import join_serve_logs
from actors.status import ReplicaStatus
from actors.text_generation import generate_text
from actors.trace_sender import TraceSender
from actors.weight_follower import WeightFollower
from evospec.align.trace import Trace
from evospec.config import Config
from evospec.engine.build import load_engine
from evospec.engine.engine import Engine
from evospec.engine.token_text import PieceTokenizer, TokenTexts
from evospec.heap import settle_heap
from evospec.ports import RegistryFactory

MEBIBYTE = 1 << 20


class DecodingReplica:
    """Ray Serve deployment class.

    Loads the model and the wanted adapter version before Serve sends it traffic.

    Args:
        registry: opens the weight registry; None when no adapters are followed.
        model_name: the name that metrics are labelled with.
        group: behind the names of the actors that work for this model's replicas; empty for a single model.

    Raises:
        EvoSpecError: the model, or a drafter for it, can't be had.
    """

    def __init__(
        self, config: Config, registry: RegistryFactory | None, model_name: str, group: str = ""
    ) -> None:
        join_serve_logs()
        engine = load_engine(config)
        engine.prepare()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._fingerprints = engine.fingerprints
        # Its methods also take batches, which their annotations reflect.
        self._tokenizer = cast(PieceTokenizer, engine.target.tokenizer)
        self._texts = TokenTexts(self._tokenizer)
        self._limits = ModelLimits(max_length=engine.max_length, vocab_size=engine.target.vocab_size)
        self._loop = EngineLoop(engine)
        self._sender = TraceSender(
            RemoteAligner(ALIGNER + group).submit, max_bytes=int(config.alignment.trace_buffer_mb * MEBIBYTE)
        )
        self._index = IndexClient(
            RemoteTokenIndex(INDEX_HOST + group),
            self._loop.offer_hits,
            limit=config.semantic.neighbours,
            deadline_s=config.semantic.deadline_s,
        )
        self._follower = self._build_follower(engine, registry, config.registry.poll_s)
        settle_heap()
        settle_heap()
        self._start()
        export_regularly(Exporter(metrics.REPLICA, {"model_name": model_name}), self._status)

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncIterator[GenerationChunk | GenerationFailure]:
        """One chunk per cycle; see `generate_text`."""
        async for chunk in generate_text(self._loop, self._tokenizer, self._texts, request):
            yield chunk

    async def limits(self) -> ModelLimits:
        return self._limits

    async def status(self) -> ReplicaStatus:
        return self._status()

    def check_health(self) -> None:
        """Raises EngineFailedError when the engine crashed or is stuck: Serve replaces the replica."""
        self._loop.check()

    def _start(self) -> None:
        self._loop.start(
            Outlets(traces=self._send_traces, lookups=self._index.look_up, points=self._index.write)
        )
        self._sender.start()
        self._index.start()
        if self._follower is not None:
            self._follower.start()

    def _build_follower(
        self, engine: Engine, registry: RegistryFactory | None, poll_s: float
    ) -> WeightFollower | None:
        drafter = engine.drafter
        if drafter is None or registry is None:
            return None
        adoption = Adoption(
            build=lambda weights: build_adapter(weights, engine.fingerprints, drafter),
            swap=lambda adapter: self._loop.swap(engine.stage_adapter(adapter)),
        )
        return WeightFollower(self._name, registry, adoption, poll_s)

    def _send_traces(self, traces: list[Trace]) -> None:
        for trace in traces:
            self._sender.offer(trace)

    def _status(self) -> ReplicaStatus:
        return ReplicaStatus(
            replica=self._name,
            fingerprints=self._fingerprints,
            engine=self._loop.stats(),
            traces=self._sender.counts(),
            index=self._index.counts(),
            weights=self._follower.counts() if self._follower is not None else FollowerCounts(),
            arms=self._loop.arms(),
        )
