"""Runs a load test from start to files, with progress on standard error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from evospec.bench.command import make_folder
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.prompts import Prompt, read_prompts
from services.addresses import is_local
from services.event_stream import error_reason
from services.load.client import LoadClient
from services.load.generator import Sent, closed_loop, open_loop
from services.load.plots import write_plots
from services.load.report import headline, write_report
from services.load.results import LoadResults
from services.load.schedule import in_order, poisson_arrivals
from services.load.settings import LoadError, LoadSettings, base_url
from services.load.summary import failures, records, summarise

TOO_MANY_REQUESTS = 429
_PROBE_TIMEOUT_S = 30.0


def run_load(settings: LoadSettings, key: str | None, out: Path) -> LoadResults:
    """Sends the load, writes results.json, report.md and plots into `out`, and prints a summary.

    Raises:
        EvoSpecError: bad settings or prompts, an endpoint that can't be reached or refuses the key, or a
            folder that can't be written.
    """
    url = base_url(settings.url)
    prompts = read_prompts(settings.prompts, split=settings.split, limit=settings.limit)
    make_folder(out)
    console = Console(stderr=True, highlight=False)
    results = asyncio.run(measure(settings, url, key, prompts, console))
    results.write(out)
    write_report(results, write_plots(results, out), out)
    console.print(headline(results), markup=False, soft_wrap=True)
    for failure in results.failures:
        status = failure.status or "no answer"
        console.print(f"{failure.count} failed: {status}: {failure.reason}", markup=False, soft_wrap=True)
    console.print(f"results.json, report.md and plots are in {escape(str(out))}", soft_wrap=True)
    return results


def went_wrong(results: LoadResults) -> bool:
    """Whether nothing was answered, or something failed that is no refusal under overload."""
    nothing = results.total.failed == results.total.requests
    return nothing or any(failure.status != TOO_MANY_REQUESTS for failure in results.failures)


async def measure(
    settings: LoadSettings, url: str, key: str | None, prompts: list[Prompt], console: Console
) -> LoadResults:
    """Sends the load. Raises LoadError when there is nothing to send it to, see `find_model`."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    # No limit of connections: what waits for one would not be under way.
    host = urlsplit(url).hostname or ""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=settings.timeout_s,
        limits=limits,
        trust_env=not is_local(host),  # this machine is not for a proxy that the environment may name
    ) as http:
        model = await find_model(http, url, settings.model)
        client = LoadClient(http, model, settings.asked)
        warm = in_order(prompts, settings.warmup, settings.every, settings.seed + 1)
        if warm:
            await closed_loop(client, warm, settings.concurrency, lambda _: None)
        with _shown(settings.requests, console) as heard:
            sent = await _send_all(settings, client, prompts, heard)
    requests = records(sent)
    return LoadResults(
        schema=1,
        machine=describe_machine(),
        git=git_commit(),
        settings=settings.described(model),
        runs=summarise(requests, streamed=settings.asked.stream),
        failures=failures(requests),
        requests=requests,
    )


async def _send_all(
    settings: LoadSettings, client: LoadClient, prompts: list[Prompt], heard: Callable[[], None]
) -> list[Sent]:
    sent: list[Sent] = []

    def hear(one: Sent) -> None:
        sent.append(one)
        heard()

    order = in_order(prompts, settings.requests, settings.every, settings.seed)
    if settings.rate is None:
        await closed_loop(client, order, settings.concurrency, hear)
    else:
        arrivals = poisson_arrivals(settings.rate, settings.requests, settings.seed)
        await open_loop(client, order, arrivals, hear)
    return sent


async def find_model(http: httpx.AsyncClient, url: str, wanted: str | None) -> str:
    """The model to ask for: the one that is wanted, else the endpoint's first.

    Raises:
        LoadError: nobody listens there, the key is refused, or no model is listed and none is wanted.
    """
    try:
        response = await http.get("/v1/models", timeout=_PROBE_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise LoadError(f"{url} can't be reached: {str(error) or type(error).__name__}") from None
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise LoadError(
            f"{url} refuses the key ({error_reason(response.text)}): give one with --api-key or "
            "EVOSPEC_API_KEY"
        )
    if wanted is not None:
        return wanted
    if response.status_code != httpx.codes.OK:
        raise LoadError(f"{url}/v1/models answers {response.status_code}: name a model with --model")
    return _first_model(url, response)


def _first_model(url: str, response: httpx.Response) -> str:
    try:
        listed: Any = response.json()
        return str(listed["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise LoadError(f"{url}/v1/models lists no model: name one with --model") from None


@contextmanager
def _shown(count: int, console: Console) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, and a line at each tenth elsewhere; yields what to call per answer."""
    began = time.monotonic()
    done = 0
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("answers", total=count)

        def advance() -> None:
            nonlocal done
            done += 1
            bars.update(task, completed=done)
            if not console.is_terminal and done * 10 // count > (done - 1) * 10 // count:
                console.print(f"{done} of {count} answers after {time.monotonic() - began:.1f} s")

        yield advance
