# Everything a person or CI runs. Each target sets up what it needs; nothing needs a network service.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.stamp-setup
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: kernels-test kernels-sanitize kernels-bench kernels-tune help setup demo test test-fast browser lint format types imports protos stubs check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(SETUP) ## a virtual environment with everything, at pinned versions

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DeltaServe needs Python 3.11 or newer, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[router,compressor,worker,dev]'
	@touch $@

demo: $(SETUP) ## upload a fine-tune, watch it compress, stream from four models at once
	@$(BIN)/python examples/demo.py

test: $(SETUP) browser ## the whole test suite
	@$(BIN)/python -m pytest

test-fast: $(SETUP) ## the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow" -x -q

browser: # for the tests of the quality report's page; they are skipped, and say so, where there is none
	@sh scripts/setup_browser.sh

lint: $(SETUP) protos imports types ## style, types, import rules, protos and stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(SETUP) ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(SETUP)
	@$(BIN)/mypy

imports: $(SETUP)
	@$(BIN)/lint-imports

protos: $(SETUP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/check_protos.sh

stubs: $(SETUP) ## regenerate deltaserve/v1 and docs/api.md from protos/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/generate_stubs.py
	@$(BIN)/python scripts/generate_api_reference.py

check: lint test ## what CI runs

kernels-test kernels-sanitize kernels-bench kernels-tune: kernels-%: $(SETUP) ## the kernels on an NVIDIA GPU
	@PYTHON=$(BIN)/python bash scripts/check_kernels.sh $*

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .deltaserve
