"""Wake-ups over pub/sub: a hint that the registry's pointer moved, never the truth."""

from __future__ import annotations

import logging
import threading
import time

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError

from evospec.errors import RegistryError

logger = logging.getLogger(__name__)

SLICE_S = 0.5  # `close` interrupts a wait within this
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class WakeupListener:
    """Waits for messages on one channel, and survives the loss of its connection.

    Messages sent while nobody was subscribed are lost. So each confirmed
    subscription, the first one and every one after a reconnect, counts as a hint.
    """

    def __init__(self, client: Redis, channel: str, address: str) -> None:
        self._client = client
        self._channel = channel
        self._address = address
        self._pubsub: PubSub | None = None
        self._lock = threading.Lock()  # a subscription is read by one thread at a time
        self._closed = threading.Event()
        self._lost = False

    def wait(self, timeout_s: float) -> bool:
        """True on a hint, False when `timeout_s` seconds brought none or the server is away.

        Raises:
            RegistryError: the listener was closed.
        """
        deadline = time.monotonic() + timeout_s
        pause = FIRST_PAUSE_S
        with self._lock:
            while not self._closed.is_set():
                remaining = max(0.0, deadline - time.monotonic())
                try:
                    if self._receive(min(remaining, SLICE_S)):
                        return True
                except RedisError as error:
                    self._disconnected(error)
                    self._closed.wait(min(pause, remaining))
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                if remaining == 0.0:
                    return False
        raise RegistryError(f"the connection to {self._address} was closed: open a new registry")

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._reset()

    def _receive(self, timeout_s: float) -> bool:
        """One read of the subscription, which is made when there is none."""
        if self._pubsub is None:
            self._pubsub = self._client.pubsub()
            self._pubsub.subscribe(self._channel)
        hinted = self._pubsub.get_message(timeout=timeout_s) is not None
        while hinted and self._pubsub.get_message(timeout=0.0) is not None:
            continue  # several hints at once are one
        if hinted and self._lost:
            self._lost = False
            logger.info("wake-ups from %s are back", self._address)
        return hinted

    def _disconnected(self, error: RedisError) -> None:
        self._reset()
        if not self._lost:
            self._lost = True
            logger.warning("no wake-ups from %s, polling goes on: %s", self._address, error)

    def _reset(self) -> None:
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None
