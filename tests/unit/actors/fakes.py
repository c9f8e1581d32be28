"""Small stand-ins for an engine, a registry and a token index."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from evospec.align.trace import Trace
from evospec.engine.request import Request, StepOutput
from evospec.engine.stats import EngineStats
from evospec.errors import (
    DecisionRefusedError,
    InvalidRequestError,
    RegistryError,
    StalePublisherError,
    VersionMissingError,
    WireError,
)
from evospec.models.adapter import AdapterWeights
from evospec.models.adapter_slot import StagedAdapter
from evospec.vocab.semantic import Lookup
from evospec.vocab.tenants import tenant_key
from evospec.wire import (
    MANIFEST_SCHEMA,
    Decision,
    Fingerprints,
    IndexPoint,
    Manifest,
    Rollout,
    RolloutEvent,
    TokenHits,
    VersionedWeights,
)

T = TypeVar("T")
FINGERPRINTS = Fingerprints(target="t", drafter="d", tokenizer="k")


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Polls; a generous limit, so that a busy machine fails no test."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true")
        time.sleep(0.002)


class FakeEngine:
    """Emits one token per request and step: its prompt's first id, until max_tokens."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.left: dict[str, list[int]] = {}
        self.cancelled: set[str] = set()
        self.swaps: list[int] = []
        self.swapped_while_stepping = False
        self.hits: list[tuple[str, TokenHits]] = []
        self.lookups: list[Lookup] = []
        self.crash: Exception | None = None
        self.gate = threading.Event()  # each step waits for it
        self.gate.set()
        self.in_step = False
        self.prefill_seconds = 0.0  # that each step claims to have spent on prompts
        self.threads: set[int] = set()

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    def admit(self, request: Request) -> None:
        if not request.prompt_ids:
            raise InvalidRequestError("the prompt is empty", "prompt")
        self.left[request.id] = [request.prompt_ids[0]] * request.sampling.max_tokens
        self.lookups.append(Lookup(request.id, request.tenant, np.ones(2, np.float32)))

    def cancel(self, request_id: str) -> None:
        self.cancelled.add(request_id)

    def step(self) -> list[StepOutput]:
        self.threads.add(threading.get_ident())
        self.in_step = True
        self.gate.wait(20)
        if self.crash is not None:
            raise self.crash
        outputs = [self._advance(request_id) for request_id in tuple(self.left)]
        self.stats.cycles += 1
        self.stats.prefill_seconds += self.prefill_seconds
        self.in_step = False
        return outputs

    def _advance(self, request_id: str) -> StepOutput:
        if request_id in self.cancelled:
            del self.left[request_id]
            return StepOutput(request_id, (), finish_reason="cancelled")
        tokens = self.left[request_id]
        token = tokens.pop()
        if not tokens:
            del self.left[request_id]
            return StepOutput(request_id, (token,), finish_reason="length")
        return StepOutput(request_id, (token,))

    def swap_adapter(self, adapter: StagedAdapter) -> None:
        self.swapped_while_stepping |= self.in_step
        if adapter.version < 0:
            raise WireError("does not fit")
        self.swaps.append(adapter.version)
        self.stats.adapter_version = adapter.version

    def take_traces(self) -> list[Trace]:
        return []

    def take_lookups(self) -> list[Lookup]:
        taken, self.lookups = self.lookups, []
        return taken

    def take_points(self) -> list[IndexPoint]:
        return []

    def offer_hits(self, request_id: str, hits: TokenHits) -> None:
        self.hits.append((request_id, hits))


def versioned(
    version: int, *, epoch: int = 1, fingerprints: Fingerprints = FINGERPRINTS, blob: bytes = b"weights"
) -> VersionedWeights:
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        version=version,
        epoch=epoch,
        parent=version - 1,
        created=0.0,
        fingerprints=fingerprints,
        tensors=(),
        length=len(blob),
        sha256=hashlib.sha256(blob).hexdigest(),
    )
    return VersionedWeights(manifest, blob)


@dataclass
class FakeRegistry:
    """In memory; `down` fails every call, `deaf` acknowledgements; `corrupt` versions fail their checks."""

    versions: dict[int, VersionedWeights] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    now: Rollout = field(default_factory=Rollout)
    newest: int = 0
    epoch: int = 0
    decisions: list[Decision] = field(default_factory=list)
    acks: dict[str, int] = field(default_factory=dict)
    down: bool = False
    deaf: bool = False
    lose_next_answer: bool = False
    corrupt: set[int] = field(default_factory=set)
    fetches: deque[int] = field(default_factory=deque)
    hint: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    @property
    def current(self) -> int:
        return self.now.stable

    def put(self, version: int, *, epoch: int = 1, fingerprints: Fingerprints = FINGERPRINTS) -> None:
        """A version that is stable at once."""
        self.versions[version] = versioned(version, epoch=epoch, fingerprints=fingerprints)
        self._move(stable=version)

    def try_out(self, version: int, *canary: str) -> None:
        """A version that waits for its canary, or is in it."""
        self.versions[version] = versioned(version)
        self._move(candidate=version, canary=frozenset(canary))

    def acquire_epoch(self) -> int:
        self._check()
        self.epoch += 1
        return self.epoch

    def rollout(self) -> Rollout:
        self._check()
        return self.now

    def newest_version(self) -> int:
        self._check()
        return self.newest

    def fetch(self, version: int) -> VersionedWeights:
        self._check()
        self.fetches.append(version)
        if version in self.corrupt:
            raise WireError(f"version {version}: blob does not match its SHA-256")
        if version not in self.versions:
            raise VersionMissingError(f"version {version} is not there")
        return self.versions[version]

    def fetch_training_state(self, version: int) -> bytes | None:
        self._check()
        return self.states.get(version)

    def publish(self, manifest: Manifest, blob: bytes, training_state: bytes | None = None) -> None:
        self._check()
        manifest.verify(blob, None)
        if manifest.version <= self.newest or manifest.epoch < self.epoch:
            raise StalePublisherError("stale")
        if manifest.state == "candidate" and self.now.candidate:
            raise DecisionRefusedError("another candidate is being tried")
        self.versions[manifest.version] = VersionedWeights(manifest, blob)
        if training_state is not None:
            self.states[manifest.version] = training_state
        if manifest.state == "stable":  # it overtakes what is being tried
            self._move(stable=manifest.version, candidate=0, canary=frozenset())
        else:
            self._move(candidate=manifest.version)
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise RegistryError("connection lost")

    def decide(self, decision: Decision) -> None:
        """Does not check: that is the real one's part."""
        self._check()
        self.decisions.append(decision)
        if decision.kind == "canary":
            self._move(canary=frozenset(decision.replicas))
        elif decision.kind == "revoke":
            self._move(candidate=0, canary=frozenset())
        else:
            self._move(stable=decision.version, candidate=0, canary=frozenset())

    def events(self, limit: int = 100) -> list[RolloutEvent]:
        return [
            RolloutEvent(event=made.kind, version=made.version, time_s=0.0, by=made.by, reason=made.reason)
            for made in self.decisions[-limit:]
        ]

    def acknowledge(self, replica: str, version: int) -> None:
        self._check()
        if self.deaf:
            raise RegistryError("connection lost")
        self.acks[replica] = version

    def acknowledgements(self) -> dict[str, int]:
        self._check()
        return dict(self.acks)

    def wait(self, timeout_s: float) -> bool:
        hinted = self.hint.wait(timeout_s)
        self.hint.clear()
        return hinted

    def close(self) -> None:
        self.closed = True

    def lose_everything(self) -> None:
        """As a server that was flushed."""
        self.versions.clear()
        self.states.clear()
        self.acks.clear()
        self.now, self.newest, self.epoch = Rollout(), 0, 0

    def _move(self, **changes: Any) -> None:
        self.now = replace(self.now, serial=self.now.serial + 1, **changes)
        self.newest = max(self.newest, self.now.stable, self.now.candidate)
        self.hint.set()

    def _check(self) -> None:
        if self.down:
            raise RegistryError("not reachable")


def adapter(version: int) -> AdapterWeights:
    return AdapterWeights(version, {"fc.lora_a": torch.zeros(1, 2), "fc.lora_b": torch.zeros(2, 1)})


def staged(version: int) -> StagedAdapter:
    return StagedAdapter(version, {})


def done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def trace(width: int = 4) -> Trace:
    """A trace whose size grows with `width`; its contents do not matter here."""
    flags = np.zeros(width, bool)
    return Trace(
        fingerprints=FINGERPRINTS,
        adapter_version=0,
        vocabulary_epoch=0,
        tenant=tenant_key(""),
        prompt_length=1,
        start=0,
        token_ids=np.zeros(width + 1, np.int32),
        features=np.zeros((width, 8), np.uint16),
        top_ids=np.zeros((width, 2), np.int32),
        top_logprobs=np.zeros((width, 2), np.float16),
        generated=flags,
        draft_position=np.zeros(width, np.int8),
        accepted=flags,
        missed=flags,
        past=np.zeros((2, 1, 0, 4), np.uint16),
        context=np.zeros(4, np.uint16),
    )


def points(count: int) -> Sequence[IndexPoint]:
    vector = np.array([1.0, 0.0], np.float32)
    return [IndexPoint(vector, (1,), (1.0,), "", "t") for _ in range(count)]
