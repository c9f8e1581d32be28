"""The processes behind named Ray actors, and their sudden death."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.kit.patience import wait_for

ANSWER_TIMEOUT_S = 5.0  # one that is still starting does not answer


@dataclass(frozen=True, slots=True)
class ActorProcess:
    """`name` as Ray knows the actor, `pid` of the process that runs it."""

    name: str
    pid: int

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not _runs(self.pid))


def actor_processes(part: str = "") -> list[ActorProcess]:
    """Processes of the named actors whose name contains `part`; those that don't answer are left out."""
    import ray

    asked: dict[Any, str] = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if part in actor["name"] and (reference := _ask_pid(actor)) is not None:
            asked[reference] = actor["name"]
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_TIMEOUT_S) if asked else ([], [])
    pids = {reference: _answer(reference) for reference in ready}
    return [ActorProcess(asked[reference], pid) for reference, pid in pids.items() if pid is not None]


def actor_process(name: str) -> ActorProcess:
    """The process of the actor of that name or, where names have a random part, of one that contains it.

    Waits until it answers.
    """
    found: list[ActorProcess] = []

    def answers() -> bool:
        found[:] = sorted(actor_processes(name), key=lambda one: one.name != name)
        return bool(found)

    wait_for(answers)
    return found[0]


def _ask_pid(actor: dict[str, str]) -> Any:
    """A reference to the process id; None when the actor went away meanwhile."""
    import ray

    try:
        handle: Any = ray.get_actor(actor["name"], namespace=actor["namespace"])
    except ValueError:
        return None
    return handle.__ray_call__.remote(lambda _: os.getpid())


def _answer(reference: Any) -> int | None:
    import ray
    from ray.exceptions import RayActorError

    try:
        pid: int = ray.get(reference)
    except RayActorError:
        return None
    return pid


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # dead, and only not asked for yet
