"""`evospec demo`: starts everything here, sends traffic, reports, and stops everything again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.markup import escape

from evospec.bench.command import make_folder
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.prompts import read_prompts
from evospec.bench.results import shown_name
from evospec.config import AlignmentConfig, Config, RolloutConfig
from evospec.models.loading import pick_device, pick_dtype, resolve_target
from services.demo.client import TIMEOUT_S, ChatClient
from services.demo.display import Display, ReplicaView, View, open_display
from services.demo.plots import write_plots
from services.demo.report import headline, write_report
from services.demo.results import AlignerSummary, ControllerSummary, DemoResults
from services.demo.summary import MIN_VERSIONS, shortcomings, summarise
from services.demo.timeline import Timeline
from services.demo.traffic import ROUNDS, Traffic, schedule
from services.interrupts import interrupt_once, run_interruptibly
from services.local_cluster import LocalCluster
from services.settings import load_config

if TYPE_CHECKING:
    from actors.aligner import AlignerStatus
    from actors.rollout_controller import RolloutStatus

PROMPTS = Path(__file__).with_name("prompts.jsonl")
POLL_S = 1.0
WINDOW_S = 8.0  # of sliding rates
GRACE_S = 120.0  # after the last answer, for a version that is on its way
# For two minutes of a request a second, on processors that replicas and aligner share.
ROLLOUT = RolloutConfig(speed_margin=0.3, min_requests=4, soak_s=5.0, max_minutes=0.5, poll_s=0.5)
# Five dozen short answers of four topics hardly make a trained drafter better, or worse: not by this.
# Versions bring the cluster's core and successor tables as well, and a demo is to show how they travel.
MIN_GAIN = -0.02


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What may be chosen; None leaves it to the configuration."""

    target: str | None = None
    drafter: str | None = None
    replicas: int = 2
    requests: int = 72
    concurrency: int = 4
    max_tokens: int = 80

    def config(self) -> Config:
        """The configuration: defaults, environment, then these options. Raises ConfigError."""
        given: dict[str, Any] = {"serve.replicas": self.replicas, "serve.port": 0}
        if self.target is not None:
            given["model.target"] = self.target
        if self.drafter is not None:
            given["model.drafter"] = self.drafter
        config = load_config(options=given)
        rollout = ROLLOUT if config.rollout == RolloutConfig() else config.rollout
        alignment = config.alignment
        if alignment == AlignmentConfig():
            alignment = alignment.model_copy(update={"min_gain": MIN_GAIN})
        return config.model_copy(update={"rollout": rollout, "alignment": alignment})


@dataclass(slots=True)
class Observed:
    """What is known once the traffic is over."""

    traffic: Traffic
    timeline: Timeline = field(default_factory=Timeline)
    aligner: AlignerStatus | None = None
    rollout: RolloutStatus | None = None
    index_points: int = 0


def run(out: Path, options: DemoOptions) -> int:
    """Returns the exit code: 0 when the demo showed what it is to show, else 1.

    Raises:
        EvoSpecError: the cluster can't be started, or `out` can't be written.
    """
    config = options.config()
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    interrupt_once()
    resolve_target(config.model.target)  # shows its own progress
    console.print("starting Ray, registry, token index, aligner and replicas ...")
    with LocalCluster(config) as cluster:
        interrupt_once()  # Ray put a handler of its own in place
        observed = run_interruptibly(_observe(cluster, options, console))
        console.print("stopping ...")
    results = _results(observed, config, options)
    results.write(out)
    plots = write_plots(results, observed.timeline.rates(WINDOW_S), out)
    write_report(results, plots, out)
    _conclude(results, out, console)
    return 1 if results.problems else 0


async def _observe(cluster: LocalCluster, options: DemoOptions, console: Console) -> Observed:
    """Sends all requests, watching the replicas meanwhile."""
    errands = schedule(read_prompts([PROMPTS]), options.requests)
    model = cluster.config.served_name
    # Requests go to this machine, whatever proxy the environment names.
    async with httpx.AsyncClient(base_url=cluster.url, timeout=TIMEOUT_S, trust_env=False) as http:
        observed = Observed(Traffic(errands, ChatClient(http, model, options.max_tokens)))
        with open_display(console) as display:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(_watch(cluster, observed, display))
                await observed.traffic.run(options.concurrency)
                if await asyncio.to_thread(cluster.aligner) is not None:
                    await _await_versions(observed)
                watching.cancel()
            await _look(cluster, observed, display)
    observed.aligner = await asyncio.to_thread(cluster.aligner)
    observed.rollout = await asyncio.to_thread(cluster.rollout)
    observed.index_points = await asyncio.to_thread(cluster.index_points)
    return observed


async def _watch(cluster: LocalCluster, observed: Observed, display: Display) -> None:
    while True:
        await _look(cluster, observed, display)
        await asyncio.sleep(POLL_S)


async def _look(cluster: LocalCluster, observed: Observed, display: Display) -> None:
    """Asks the replicas once. One that is just being replaced doesn't answer: that is counted."""
    from ray.exceptions import RayError

    try:
        statuses = await asyncio.to_thread(cluster.replicas)
    except (RayError, TimeoutError):
        observed.timeline.missed += 1
    else:
        observed.timeline.add(observed.traffic.now(), statuses)
    display.show(_view(observed))


async def _await_versions(observed: Observed) -> None:
    deadline = observed.traffic.now() + GRACE_S
    while len(observed.timeline.rollouts) < MIN_VERSIONS and observed.traffic.now() < deadline:
        await asyncio.sleep(POLL_S)


def _view(observed: Observed) -> View:
    traffic, timeline = observed.traffic, observed.timeline
    rates = timeline.latest(WINDOW_S)
    engines = timeline.snapshots[-1].engines if timeline.snapshots else {}
    replicas = []
    for name, engine in engines.items():
        rate = rates.get(name)
        replicas.append(
            ReplicaView(
                name=name,
                tokens_per_s=None if rate is None else rate.tokens_per_s,
                acceptance_length=None if rate is None else rate.acceptance_length,
                active_rows=engine.active_rows,
                adapter_version=engine.adapter_version,
                running=engine.running,
            )
        )
    return View(
        elapsed_s=traffic.now(),
        doing=_doing(traffic),
        done=len(traffic.records),
        failed=len(traffic.failed),
        total=len(traffic.errands),
        replicas=replicas,
        rolled_out=len(timeline.rollouts),
    )


def _doing(traffic: Traffic) -> str:
    if len(traffic.records) == len(traffic.errands):
        return "waiting for adapter versions"
    return (
        "beginning" if traffic.current is None else f"{traffic.current.topic}, round {traffic.current.round}"
    )


def _results(observed: Observed, config: Config, options: DemoOptions) -> DemoResults:
    records = tuple(sorted(observed.traffic.records, key=lambda record: record.started_s))
    timeline = observed.timeline
    device = pick_device(config.model.device)
    drafter = config.model.drafter
    return DemoResults(
        machine=describe_machine(),
        git=git_commit(),
        settings={
            "target": shown_name(config.model.target),
            "drafter": None if drafter is None else shown_name(drafter),
            "policy": config.vocabulary.policy,
            "device": device.type,
            "dtype": str(pick_dtype(config.model.dtype, device)).removeprefix("torch."),
            "replicas": options.replicas,
            "requests": options.requests,
            "concurrency": options.concurrency,
            "max_tokens": options.max_tokens,
            "rounds": ROUNDS,
            "window_s": WINDOW_S,
            "status_calls_missed": timeline.missed,
        },
        runs=summarise(records, timeline, config, options.concurrency),
        requests=records,
        timeline=timeline.points(),
        rollouts=tuple(timeline.rollouts),
        aligner=None if observed.aligner is None else _aligner(observed.aligner, config),
        controller=None if observed.rollout is None else _controller(observed.rollout),
        index_points=observed.index_points,
        problems=shortcomings(records, options.requests, timeline.rollouts),
    )


def _aligner(status: AlignerStatus, config: Config) -> AlignerSummary:
    return AlignerSummary(
        traces=status.progress.received,
        steps=status.trainer.steps,
        candidates=status.progress.gated,
        rejected=status.progress.rejected,
        published=status.publisher.published,
        min_gain=config.alignment.min_gain,
    )


def _controller(status: RolloutStatus) -> ControllerSummary:
    return ControllerSummary(
        promoted=status.counts.promoted, revoked=status.counts.revoked, verdict=status.verdict
    )


def _conclude(results: DemoResults, out: Path, console: Console) -> None:
    for run in results.runs:
        console.print(
            f"  round {run.round}  {run.domain:<12} τ {run.acceptance_length:.2f}  "
            f"{run.tokens_per_s:5.1f} tokens/s per request  {run.active_rows:6,.0f} rows",
            soft_wrap=True,
        )
    console.print(f"{headline(results)}.", soft_wrap=True)
    console.print(f"report.md, results.json and plots are in {escape(str(out))}", soft_wrap=True)
    for problem in results.problems:
        console.print(f"the demo fell short: {problem}", style="bold red", markup=False, soft_wrap=True)
