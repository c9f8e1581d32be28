"""The dashboard of a running cluster under traffic, and what it leaves in metrics and logs."""

from __future__ import annotations

import glob
import json
import runpy
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.local_cluster import LocalCluster
from tests.browser.conftest import NARROW, Open, keep_screenshot
from tests.browser.served import MODEL, TOPICS, served_config, traffic
from tests.unit.actors.fakes import wait_until

ROOT = Path(__file__).resolve().parents[2]
NOTHING = "\u2013"  # a value that was not observed
PATIENCE_MS = 180_000  # a version has to be learned, on a machine that may be busy
PATIENCE_S = PATIENCE_MS / 1000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
        with LocalCluster(served_config(tmp_path_factory.mktemp("tiny"))) as cluster:
            yield cluster.url


@pytest.fixture(scope="module")
def busy(url: str) -> Iterator[str]:
    with traffic(url):
        yield url


def test_values_change_while_traffic_runs(watch: Open, busy: str) -> None:
    page = watch().open(busy)
    page.set_default_timeout(PATIENCE_MS)
    assert page.text_content("#model") == MODEL
    page.wait_for_selector("#positions li")
    page.wait_for_selector("#sources li")
    assert page.locator("#replicas tbody tr").count() == 2
    speeds, taus = set(), set()

    def moved() -> bool:
        speeds.add(page.text_content("#kpi-speed [data-value]"))
        taus.add(page.text_content("#kpi-tau [data-value]"))
        page.wait_for_timeout(200)
        return len(speeds - {NOTHING}) >= 3 and len(taus - {NOTHING}) >= 3

    wait_until(moved, PATIENCE_S)
    page.wait_for_selector("#events .tag.promote")
    page.wait_for_selector("#replicas td:has-text('v')")
    page.wait_for_selector("#topics circle")
    page.wait_for_selector("#aligner dd")
    keep_screenshot(page, "served-1280")


def test_the_answer_is_the_apis_and_its_tokens_are_coloured(watch: Open, busy: str) -> None:
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": TOPICS[0]}],
        "max_tokens": 60,
        "temperature": 0,
    }
    answer = httpx.post(f"{busy}/v1/chat/completions", json=asked, timeout=PATIENCE_S, trust_env=False).json()
    page = watch(NARROW, "dark").open(busy)
    page.set_default_timeout(PATIENCE_MS)
    page.fill("#prompt", TOPICS[0])
    page.fill("#max-tokens", "60")
    page.click("#send")
    # Not the announcement: the next version's may follow it at once.
    page.wait_for_selector("#answer[aria-busy='false']:not(:empty)")
    assert page.text_content("#answer") == answer["choices"][0]["message"]["content"]
    assert page.locator("#answer .bonus, #answer .miss, #answer .accepted").count() > 0
    tokens = answer["usage"]["completion_tokens"]
    assert page.locator("#answer-facts div").all_text_contents()[0] == f"Tokens{tokens}"
    keep_screenshot(page, "served-390")


def test_what_is_scraped_is_what_is_documented(busy: str) -> None:
    import ray

    exported = runpy.run_path(str(ROOT / "infra" / "metrics_page.py"))["exported"]()
    documented = {name: one for found in exported.values() for one in found for name in one.series}
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    # Counters that nothing has happened to are not there; neither is what needs a failure.
    wanted = {
        "ray_generation_tokens_total",
        "ray_spec_decode_num_drafts_total",
        "ray_spec_decode_num_accepted_tokens_per_pos_total",
        "ray_evospec_num_attempted_tokens_per_pos_total",
        "ray_evospec_cycles_by_plan_total",
        "ray_evospec_active_rows_by_source",
        "ray_evospec_coverable_tokens_total",
        "ray_evospec_adapter_version",
        "ray_num_requests_running",
        "ray_time_to_first_token_seconds_bucket",
        "ray_inter_token_latency_seconds_count",
        "ray_e2e_request_latency_seconds_sum",
        "ray_evospec_http_responses_total",
        "ray_evospec_generations_total",
        "ray_evospec_aligner_steps_total",
        "ray_evospec_aligner_published_total",
        "ray_evospec_rollout_stable_version",
        "ray_evospec_rollout_promoted_total",
    }
    assert wanted <= documented.keys()
    seen: dict[str, set[str]] = {}
    deadline = time.monotonic() + PATIENCE_S

    def scraped() -> bool:
        text = httpx.get(address, timeout=60, trust_env=False).text
        for line in text.splitlines():
            name, _, labels = line.partition("{")
            if name in documented:
                found = {part.split("=")[0] for part in labels.partition("}")[0].split('",') if "=" in part}
                seen.setdefault(name, set()).update(found)
        return wanted <= seen.keys()

    while not scraped():
        assert time.monotonic() < deadline, wanted - seen.keys()
        time.sleep(1.0)
    for name, labels in seen.items():
        assert set(documented[name].labels) <= labels, name
    replica = seen["ray_generation_tokens_total"]
    assert {"application", "deployment", "replica"} <= replica


def test_logs_are_json_and_know_the_request(busy: str) -> None:
    import ray

    body = {"model": MODEL, "prompt": "whose is this", "max_tokens": 4}
    headers = {"X-Request-Id": "of-this-test"}
    response = httpx.post(f"{busy}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)
    assert response.headers["x-request-id"] == "of-this-test"
    folder = ray._private.worker._global_node.get_session_dir_path()

    def records() -> list[dict[str, object]]:
        found = []
        for file in glob.glob(f"{folder}/logs/serve/replica_*_Gateway_*.log"):
            found += [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        return [record for record in found if record.get("request_id") == "of-this-test"]

    wait_until(lambda: len(records()) >= 2, PATIENCE_S)
    ended = [record for record in records() if record["message"] == "generation ended"]
    assert len(ended) == 1
    answer = response.json()  # sampled: it may end before its fourth token
    assert ended[0]["tokens"] == answer["usage"]["completion_tokens"]
    assert ended[0]["outcome"] == answer["choices"][0]["finish_reason"]
    assert "whose is this" not in json.dumps(records())
