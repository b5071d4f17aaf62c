# Everything here sets itself up on a machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Model files come from this machine; nothing asks a hub for them.
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install services demo test faults lint types contracts check serve bench docs clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# pip with a constraints file and not uv: torch is pinned to a CPU build that only pip finds.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kb needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.x"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV) (a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/installed  ## Create .venv with everything that is needed

demo: install  ## Ingest the examples and ask some questions
	@$(BIN)/python -m kb.cli.demo

services:  ## Install PostgreSQL and Redis for the tests, where we may (Debian, as root)
	@.ci/services

# Databases of tests live in memory where there is such a place: every commit waits for the disk.
test: install services  ## Run all tests
	@tests=$$(mktemp -d /dev/shm/kb-tests-XXXXXX 2>/dev/null || mktemp -d); trap 'rm -rf "$$tests"' EXIT; \
		$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --basetemp="$$tests/tmp" \
		--cov --cov-report=term $(ARGS)

faults: install services  ## Kill, cut off and confuse a running installation; ROUNDS= SEED= ONLY=kind:number
	@KB_TEST_KILL_ROUNDS=20 $(BIN)/pytest -q tests/e2e/test_kill.py
	@$(BIN)/python -m tests.faults $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ONLY),--only "$(ONLY)")

lint: install  ## Check style
	@$(BIN)/ruff check .

types: install  ## Check types
	@$(BIN)/mypy

contracts: install  ## Check who imports whom
	@$(BIN)/lint-imports

check: lint types contracts  ## Style, types and import contracts

serve: install  ## Start a server on http://127.0.0.1:8000
	@$(BIN)/kb serve

docs: install  ## Write the manuals of node kinds, settings and routes anew
	@$(BIN)/python -m pipelines.docs > docs/nodes.md
	@$(BIN)/python -m kb.settings_docs
	@$(BIN)/python -m kb.api.reference

bench: install  ## Compare with the plain way; CORPUS=directory of a labelled set
	@test -n "$(CORPUS)" || { echo "say which labelled set: make bench CORPUS=path (see bench/README.md)"; exit 1; }
	@$(BIN)/python -m bench.ingest --corpus $(CORPUS)
	@$(BIN)/python -m bench.search --corpus $(CORPUS)

clean:  ## Remove what the targets made
	rm -rf $(VENV) .demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
