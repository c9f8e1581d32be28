# Every target does its own set-up: `make demo` and `make test` work on a fresh machine
# with Python 3.11 or newer. An active virtual environment is used; else .venv is made.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV := $(abspath $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv))
RUN := $(VENV)/bin
OUT ?= demo-report
PYTEST := $(RUN)/python -m pytest
MINUTES ?= 5
CHAOS_RECORDS := .make/chaos.jsonl

# Beside the sources, not in the environment: another clone must install itself anew.
STAMP := .make/$(subst /,_,$(VENV)).installed

.PHONY: help setup lint format types test test-unit test-slow test-integration test-chaos test-browser chaos demo clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "EvoSpec needs Python 3.11 or newer: try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@echo 'Installing into $(VENV): takes a few minutes the first time'
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,dev]'
	@mkdir -p $(@D) && touch $@

setup: $(STAMP) ## Install everything into the virtual environment

lint: $(STAMP) ## Check style, imports and formatting
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: $(STAMP) ## Format the sources and fix what can be fixed
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: $(STAMP) ## Check types
	$(RUN)/mypy

test: lint types test-unit test-slow test-integration test-chaos test-browser ## Run all checks and tests

test-unit: $(STAMP) ## Run the fast tests
	$(PYTEST) -n auto tests/unit

test-slow: $(STAMP) ## Run whole commands, and kernels in an interpreter
	$(PYTEST) -n auto tests/slow

test-integration: $(STAMP) ## Run the tests with real Ray, Valkey and Qdrant client
	$(PYTEST) tests/integration

test-chaos: $(STAMP) ## Break a running cluster in the ways that take little time
	$(PYTEST) -s -m 'not long' tests/chaos

chaos: $(STAMP) ## Break a running cluster in all ways, for MINUTES in random order, and write docs/reliability.md
	@mkdir -p .make && rm -f $(CHAOS_RECORDS)
	EVOSPEC_CHAOS_MINUTES=$(MINUTES) EVOSPEC_CHAOS_REPORT=$(CHAOS_RECORDS) $(PYTEST) -s tests/chaos
	$(RUN)/python -m tests.chaos.kit.page $(CHAOS_RECORDS) docs/reliability.md

test-browser: $(STAMP) ## Look at the dashboard with a headless Chromium, installed where that is possible
	chromium=$$(bash tests/browser/chromium.sh) && EVOSPEC_CHROMIUM=$$chromium $(PYTEST) tests/browser

demo: $(STAMP) ## Serve a real model on this machine and write a report to OUT (demo-report)
	$(RUN)/evospec demo --out $(OUT)

clean: ## Remove what make and the tools wrote (fetched models stay in the cache)
	rm -rf .make .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-report
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
