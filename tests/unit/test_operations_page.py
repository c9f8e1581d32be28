"""docs/operations.md: a section for each alert, and the capacity table that the plan makes."""

from __future__ import annotations

import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def headings() -> list[str]:
    return [line.lstrip("# ") for line in PAGE.splitlines() if line.startswith("#")]


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    rules = yaml.safe_load((ROOT / "infra/prometheus/alerts.yaml").read_text(encoding="utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert [heading for heading in headings() if heading.startswith("EvoSpec")] == alerts


def test_the_capacity_table_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "infra" / "capacity_page.py"))["page"](PAGE)
    assert made == PAGE, "run `python infra/capacity_page.py`"
