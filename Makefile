# Capstan: everything a person types. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
# CAPSTAN_TORCH=cpu takes PyTorch's own CPU-only wheel (0.8 GB on disk instead of 4.5).
CAPSTAN_TORCH ?= default

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
PACKAGES := capstan_api capstan_engine capstan_fetch capstan_gateway capstan_operator capstan_sim capstan_cli models dashboards helm

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.PHONY: setup
setup: $(VENV)/.stamp ## Install the locked environment into .venv

$(UV): requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "setup: '$(PYTHON) -m venv' failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "setup: Capstan needs Python 3.11 to 3.13; set PYTHON=python3.12, for example" >&2; exit 1; }
	@awk '/^uv==/{p=1;print;next} /^[a-z]/{p=0} p' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(VENV)/uv.lock
	@touch $(UV)

$(VENV)/.stamp: $(UV) requirements.lock pyproject.toml
	@if [ "$(CAPSTAN_TORCH)" = cpu ]; then \
	  awk '/^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/{p=0;next} /^[a-z]/{p=1} p' requirements.lock > $(VENV)/cpu.lock && \
	  torch=$$(awk '/^torch==/{print $$1}' requirements.lock) && \
	  VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet $(VENV)/cpu.lock && \
	  VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --torch-backend cpu --no-deps "$$torch"; \
	else VIRTUAL_ENV=$(VENV) $(UV) pip sync requirements.lock; fi
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Ruff's cache forgets that a new module of ours changes the order of other files' imports.
.PHONY: lint
lint: setup ## Check formatting, style, types and layers
	@failed=; check() { echo "== $$*"; $(BIN)/"$$@" || failed="$$failed\n  $$*"; }; \
	check ruff format --check --no-cache .; check ruff check --no-cache .; \
	check mypy $(addprefix -p ,$(PACKAGES)); check lint-imports --no-logo; \
	test -z "$$failed" || { printf "lint: failed:$$failed\n" >&2; exit 1; }

.PHONY: test
test: setup ## Run every test that needs no GPU and no cluster; PARTS="contract gateway" runs some
	@PYTHON=$(BIN)/python .ci/test $(PARTS)

.PHONY: test-cluster
test-cluster: setup ## Run the tests that need a Kubernetes cluster, built where there is none; FULL=1 runs the long campaigns too
	@PYTHON=$(BIN)/python CAPSTAN_CAMPAIGNS=$(if $(FULL),full,short) LIMIT=$(if $(FULL),6h,40m) PYTEST_TIMEOUT=$(if $(FULL),7200,600) \
	  LANES=$(if $(FULL),1,) SELECT='e2e and not gpu$(if $(FULL),, and not slow)' .ci/test cluster control_plane

.PHONY: test-gpu
test-gpu: setup ## Run the kernels' tests in full on this machine's GPU
	@PYTHON=$(BIN)/python SELECT='not e2e' .ci/test kernels

.PHONY: bench
bench: setup ## Measure the engine on CPU against llama.cpp, transformers and vLLM
	@$(BIN)/python tests/bench/cpu.py --rounds 2
	@$(BIN)/python tests/bench/online.py

.PHONY: bench-gpu
bench-gpu: setup ## Measure the kernels and the engine on this machine's GPU
	@failed=; for bench in kernels engine; do $(BIN)/python tests/bench/$$bench.py || failed="$$failed $$bench"; done; \
	test -z "$$failed" || { echo "bench-gpu: failed:$$failed" >&2; exit 1; }

.PHONY: cluster
cluster: setup ## Start a Kubernetes cluster of its own on this machine and say how to use it
	@PYTHONPATH=tests $(BIN)/python -m cluster up

.PHONY: generate
generate: setup ## Write the files that are generated from others
	@for generator in */generate.py; do $(BIN)/python $$generator || exit 1; done

.PHONY: clean
clean: ## Remove what was built and cached, but not the environment
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: lock
lock: ## Resolve the newest versions into requirements.lock
	@$(UV) pip compile pyproject.toml --universal --generate-hashes --all-extras --python-version 3.11 \
	  --no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock

# What is replayed, in the words of `capstan up --help`; `make demo DEMO_SPEEDUP=20` changes one part of it.
DEMO_TRACE ?= crds/examples/traces/azure23-conv-excerpt.csv
DEMO_SPEEDUP ?= 0:9,45:9,60:36,105:36,120:9
DEMO_LOAD ?= --peak-load 1.6 --window 300: --max-prompt 1024 --max-output 256 --slo-class-mix interactive=0.8,batch=0.2

.PHONY: demo
demo: setup ## Serve the shipped model, replay real traffic, and see limits and replicas follow it (3 minutes)
	@$(BIN)/capstan up crds/examples/quickstart.yaml --port 0 --replay $(DEMO_TRACE) --speedup $(DEMO_SPEEDUP) \
	  $(DEMO_LOAD) --run-dir build/demo/run --report build/demo --check
