# Pillion. `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n < 4 ? n : 4 )))
PYTEST := $(BIN)/python -m pytest
FAST := tests --ignore=tests/real_engine --ignore=tests/integration --ignore=tests/docs --ignore=tests/chaos

help: ## List what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.installed $(VENV)/.compiled ## Make .venv with pillion in it

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Pillion needs Python 3.11 or newer on the PATH (or make PYTHON=/path/to/python)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make virtual environments (on Debian: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	@$(BIN)/python -m uv pip install -q -p $(BIN)/python --compile-bytecode -r requirements.lock --no-deps -e .
	@touch $@
	@echo "pillion is in $(BIN)/pillion"

# The gateway runs without it too, as where there is no compiler.
$(VENV)/.compiled: $(VENV)/.installed $(wildcard src/pillion/gateway/*.py) $(shell find src/pillion/core -name '*.py')
	@$(BIN)/python -m pillion.main.compiling
	@touch $@

engine: setup ## Install the engine that fits this machine, in an environment of its own
	@$(BIN)/pillion engines install

demo: setup ## Bring it all up on a real engine, swap adapters under load, show what happened
	@$(BIN)/python demo/demo.py

demo-stop: ## End what the demo left running
	@$(BIN)/python demo/demo.py --stop

check: $(VENV)/.installed ## Style, types, import rules
	@$(BIN)/ruff check src tests bench demo docs
	@$(BIN)/ruff format --check -q src tests bench demo docs
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-fast: $(VENV)/.installed ## Unit and property tests alone
	@PILLION_COMPILED=0 $(PYTEST) $(FAST) -n $(WORKERS) -q

test: check engine ## Every kind of test, with small counts
	@PILLION_COMPILED=0 $(PYTEST) $(FAST) -n $(WORKERS) -q
	@$(PYTEST) tests/gateway tests/core/test_choice.py tests/core/test_limits.py -n $(WORKERS) -q # compiled now, as all below that start gateways
	@$(PYTEST) tests/chaos -q
	@$(PYTEST) tests/integration -n $(WORKERS) -q
	@$(PYTEST) tests/real_engine -q
	@$(PYTEST) tests/docs -q

test-full: ## The same with the full counts
	@PILLION_TEST_FULL=1 $(MAKE) test

chaos: setup ## A long random walk of operations and faults
	@PILLION_TEST_FULL=1 $(PYTEST) tests/chaos -q

bench-load: engine ## Hot load through Pillion against vLLM alone
	@$(BIN)/python bench/hot_load.py

bench-engine: engine ## vLLM as it comes and as Pillion runs it
	@$(BIN)/python bench/engine.py

bench-gateway: setup ## The gateway beside the routers and proxies one could put there instead
	@$(BIN)/python bench/gateway/run.py

bench-usage: setup ## A million usage events: taking them in, and asking what was used
	@$(BIN)/python bench/usage.py

bench-placement: setup ## Where adapters are kept: hits and evenness on simulated engines
	@$(BIN)/python bench/placement.py

bench-fairness: setup ## One tenant that floods a shared pool and nine that do not, with and without fairness
	@$(BIN)/python bench/fairness.py

bench-snapshot: setup ## Changes, loading and routing with 100,000 adapters of 10,000 accounts
	@$(BIN)/python bench/snapshot.py

lock: ## Renew requirements.lock from pyproject.toml
	@$(BIN)/python -m uv pip compile -q pyproject.toml --universal --all-extras --group dev --no-header --no-annotate -o requirements.lock

clean: ## Remove what setup and tests made here
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: help setup engine demo demo-stop check test-fast test test-full chaos bench-load bench-engine bench-gateway bench-fairness bench-placement bench-snapshot bench-usage lock clean
