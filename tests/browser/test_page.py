"""The dashboard in Chromium, over a staged cluster whose values are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from evospec.config.access import AccessConfig, AdminKey, ApiKey
from services.access import digest_of
from tests.browser.conftest import NARROW, WIDE, Open, Stage, keep_screenshot
from tests.browser.staged import ANSWER, REPLICAS, StagedCluster, StagedPool
from tests.unit.actors.fakes import wait_until

QUESTION = "What is a closure?"
TEXT = "".join(ANSWER).replace("|", "").replace("*", "")
STICKING_OUT = """[...document.querySelectorAll("body *")]
    .filter((one) => !one.closest(".hidden, thead") && one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => one.outerHTML.slice(0, 80))"""
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


def ask(page: Page, question: str = QUESTION) -> None:
    page.fill("#prompt", question)
    page.click("#send")
    page.wait_for_selector("#answer[aria-busy=true]")
    page.wait_for_selector("#answer[aria-busy=false]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits_and_can_be_read_in_both_widths_and_themes(
    watch: Open, staged_url: str, width: int, scheme: str
) -> None:
    page = watch(width, scheme).open(staged_url)
    ask(page)
    page.wait_for_selector("#topics circle")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(STICKING_OUT) == []
    assert page.evaluate(CONTRAST) == []
    keep_screenshot(page, f"{width}-{scheme}")


def test_values_change_by_themselves(watch: Open, staged_url: str) -> None:
    page = watch().open(staged_url)
    before = page.text_content("#replicas")
    paths = page.get_attribute("#time .g-speed", "d")
    page.wait_for_function("before => document.querySelector('#replicas').textContent !== before", arg=before)
    page.wait_for_function("d => document.querySelector('#time .g-speed').getAttribute('d') !== d", arg=paths)


def test_every_panel_shows_what_the_cluster_says(watch: Open, staged_url: str) -> None:
    page = watch().open(staged_url)
    for name in REPLICAS:
        assert page.locator("#replicas th[scope=row]", has_text=name).count() == 1
    assert page.locator("#positions li").count() == 4
    assert page.locator("#sources li").all_inner_texts()[0].startswith("Core")
    page.wait_for_selector("#events .tag.revoke")
    page.wait_for_selector("#topics circle")
    assert page.locator("#topic-list li").count() == 4
    assert "plaintiff" in (page.text_content("#topic-list") or "")
    assert page.locator("#lanes .seg").count() >= 3 * 7
    assert "stable" in (page.text_content("#rollout-readout") or "")


def test_an_answer_streams_in_and_its_tokens_are_told_apart(stage: Stage, watch: Open) -> None:
    pool = StagedPool(pause_s=0.15)
    url = stage(pool=pool)
    page = watch().open(url)
    page.fill("#prompt", QUESTION)
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#answer .accepted")
    assert len(page.text_content("#answer") or "") < len(TEXT)  # more is still to come
    page.wait_for_selector("#answer[aria-busy=false]")
    assert page.text_content("#answer") == TEXT
    assert page.locator("#answer .miss").all_text_contents() == [" nonlocal", " nonlocal"]
    cycles = len(ANSWER) - 1
    assert page.locator("#answer .bonus").count() == cycles - 2
    tokens = sum(len(cycle.split("|")) for cycle in ANSWER[1:])
    assert page.locator("#answer .accepted").count() == tokens - cycles
    colours = {
        page.eval_on_selector(f"#answer .{kind}", "one => getComputedStyle(one).backgroundColor")
        for kind in ("accepted", "bonus", "miss")
    }
    assert len(colours) == 3
    assert "Answer complete" in (page.text_content("#announce") or "")


def test_stopping_an_answer_cancels_it(stage: Stage, watch: Open) -> None:
    pool = StagedPool(pause_s=0.5)
    url = stage(pool=pool)
    page = watch().open(url)
    page.fill("#prompt", QUESTION)
    page.click("#send")
    page.wait_for_selector("#answer .accepted")
    page.click("#send")
    page.wait_for_selector("#answer[aria-busy=false]")
    wait_until(lambda: pool.closed == 1, 30)
    assert page.text_content("#send") == "Generate"


def test_answers_are_text_never_markup(watch: Open, staged_url: str) -> None:
    page = watch().open(staged_url)
    ask(page, "<img src=x onerror=alert(1)>")
    assert page.locator("#answer img").count() == 0


def test_the_keyboard_reaches_everything_and_shows_where_it_is(watch: Open, staged_url: str) -> None:
    page = watch().open(staged_url)
    reached = []
    while "answer" not in reached and len(reached) < 20:
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.className")
        reached.append(name)
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", name
    wanted = ["skip", "theme", "time", "prompt", "max-tokens", "temperature", "send", "answer"]
    assert [name for name in reached if name in wanted] == wanted
    page.focus("#time")
    latest = page.text_content("#time-readout") or ""
    page.keyboard.press("Home")
    assert latest.startswith("now")
    assert not (page.text_content("#time-readout") or "").startswith("now")
    page.keyboard.press("Escape")
    page.wait_for_selector("#time-readout:text-matches('^now')")


def test_it_speaks_to_screen_readers(watch: Open, staged_url: str) -> None:
    page = watch().open(staged_url)
    page.wait_for_selector("#topics circle")
    assert page.locator("main, header.bar").count() == 2
    assert page.locator("h1").count() == 1
    for section in page.locator("main section").all():
        assert section.get_attribute("aria-label") or section.get_attribute("aria-labelledby")
    for picture in page.locator("[role=img]").all():
        assert len(picture.get_attribute("aria-label") or "") > 30
    assert "arrow keys" in (page.get_attribute("#time", "aria-label") or "")
    unlabelled = "[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).length"
    assert page.evaluate(unlabelled) == 0
    assert page.get_attribute("#announce", "aria-live") == "polite"


def test_a_chosen_theme_stays(watch: Open, staged_url: str) -> None:
    page = watch(scheme="light").open(staged_url)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    dark = page.evaluate(background)
    assert dark != light
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.reload()
    page.wait_for_selector("#state[data-state=live]")
    assert page.evaluate(background) == dark


def test_nothing_moves_for_those_who_want_it_still(watch: Open, staged_url: str) -> None:
    page = watch().page
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"{staged_url}/dashboard")
    page.wait_for_selector("#state[data-state=live]")
    assert page.eval_on_selector("#state i", "one => getComputedStyle(one).animationName") == "none"


def test_a_key_is_asked_for_and_kept_for_this_tab(stage: Stage, watch: Open) -> None:
    access = AccessConfig(
        keys=(ApiKey(name="user", sha256=digest_of("other")),),
        admin_keys=(AdminKey(name="operator", sha256=digest_of("secret")),),
    )
    url = stage(access=access)
    page = watch(expects_errors=True).page  # Chromium itself reports 401 as an error
    page.goto(f"{url}/dashboard")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-why:has-text('not valid here')")
    page.fill("#key", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#state[data-state=live]")
    ask(page)
    assert page.text_content("#answer") == TEXT
    page.reload()
    page.wait_for_selector("#state[data-state=live]")


def test_without_replicas_it_says_so_and_recovers(stage: Stage, watch: Open) -> None:
    view = StagedCluster()
    url = stage(view)
    page = watch().open(url)
    view.silent = True
    page.wait_for_selector("#replicas:has-text('No replica answers')")
    view.silent = False
    page.wait_for_selector(f"#replicas:has-text('{REPLICAS[0]}')")


def test_a_gateway_that_comes_back_is_found_again(watch: Open, staged_url: str) -> None:
    page = watch(expects_errors=True).page
    refused = []

    def refuse_once(route: object) -> None:
        refused.append(route)
        route.abort() if len(refused) == 1 else route.continue_()  # type: ignore[attr-defined]

    page.route("**/dashboard/events", refuse_once)
    page.goto(f"{staged_url}/dashboard")
    page.wait_for_selector("#state[data-state=lost]")
    page.wait_for_selector("#state[data-state=live]")
