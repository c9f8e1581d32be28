"""A headless Chromium, and the dashboard that it looks at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from tests.browser.staged import staged

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = 1280, 390
PATIENCE_MS = 60_000


@dataclass(slots=True)
class Watched:
    """A page, and what its console complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def open(self, url: str) -> Page:
        self.page.goto(f"{url}/dashboard")
        self.page.wait_for_selector("#state[data-state=live]")
        return self.page


Open = Callable[..., Watched]
Stage = Callable[..., str]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Starts gateways in front of staged clusters, see `staged`; `watch`, asked for later, ends first."""
    with ExitStack() as started:
        yield lambda *args, **settings: started.enter_context(staged(*args, **settings))


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    names = (os.environ.get("EVOSPEC_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("there is no Chromium: run `make test-browser`, or `apt-get install chromium`")
    started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
    yield started
    started.close()


@pytest.fixture
def watch(browser: Browser) -> Iterator[Open]:
    """Opens an empty page of a width and colour scheme; in the end nothing may have complained."""
    contexts: list[BrowserContext] = []
    pages: list[Watched] = []

    def open_(width: int = WIDE, scheme: str = "light", *, expects_errors: bool = False) -> Watched:
        height = 900 if width == WIDE else 844
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        watched = Watched(context.new_page())
        if not expects_errors:
            pages.append(watched)
        watched.page.on(
            "console",
            lambda message: (
                watched.complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        return watched

    yield open_
    for context in contexts:
        context.close()
    assert [watched.complaints for watched in pages] == [[]] * len(pages)


@pytest.fixture(scope="session")
def staged_url() -> Iterator[str]:
    with staged() as url:
        yield url


def keep_screenshot(page: Page, name: str) -> None:
    """Where EVOSPEC_SCREENSHOTS names a folder, for people to look at."""
    folder = os.environ.get("EVOSPEC_SCREENSHOTS")
    if folder is not None:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
