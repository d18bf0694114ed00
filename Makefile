# `make` lists the targets. A line of help is what stands after `##`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test lint proto proto-check engine images bench crash mutants lock up down clean

SECONDS ?=
ENGINE ?= auto
PYTEST_ARGS ?=
KILLS ?= 300
SEED ?=
LEDGER ?= sqlite
JOBS ?= 2
export ENGINE PYTEST_ARGS

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Make .venv with every pinned dependency and the project

.venv/.installed: constraints.txt pyproject.toml
	@deploy/venv.sh

demo: install ## Start desk and example strategies, show them trade (SECONDS=20: unattended; ENGINE=none: no Docker)
	@deploy/demo.sh $(if $(SECONDS),--seconds $(SECONDS))

test: install ## Run the whole suite, the Docker tests too where an engine answers (PYTEST_ARGS="-k ledger")
	@deploy/test.sh

lint: install ## Check style (ruff), types (mypy) and import rules (import-linter)
	@deploy/lint.sh

proto: install ## Regenerate the Python code from proto/desk/v1/*.proto
	@deploy/proto.sh

proto-check: install ## Fail where the generated code is not what the .proto files give
	@deploy/proto.sh --check

engine: ## Find a Docker engine; as root on Debian/Ubuntu, install and start one
	@deploy/engine.sh

images: install engine ## Build the strategy and server images (works offline)
	@deploy/build-images.sh

bench: install ## Run every benchmark briefly
	@deploy/bench.sh

crash: install ## Kill a trading desk KILLS times and compare from outside (KILLS=300 SEED= LEDGER=sqlite|postgres JOBS=2)
	@.venv/bin/python -m tests.crash --kills $(KILLS) --ledger $(LEDGER) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

mutants: install ## Put eight bugs into the desk, one after the other: each must be caught within a minute
	@.venv/bin/python -m tests.crash.mutants --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

lock: install ## Pin the dependencies again, with hashes (UPGRADE=1: to their newest versions)
	@deploy/lock.sh $(if $(UPGRADE),--upgrade)

up: images ## Run the desk server in a container (docker compose)
	@deploy/compose.sh up

down: ## Stop and remove that container; the ledger stays
	@deploy/compose.sh down

clean: ## Remove .venv, wheels and caches; the ledger in run/ stays
	rm -rf .venv .wheels build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
