# `make run` and `make test` work on a machine with Python 3.11 and git alone: they make .venv, install, and do their job.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := -c constraints.txt
TESTS ?=
MARKS ?= not slow and not vllm and not gpu
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

VLLM := .venv-vllm

.PHONY: run test test-all test-vllm vllm check types docs clean

run: $(VENV)/.installed
	$(BIN)/strop run $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) -m "$(MARKS)" $(TESTS)

test-all: $(VENV)/.installed-dev
	$(PYTEST) -m "not vllm and not gpu" $(TESTS)

test-vllm: $(VENV)/.installed-dev $(VLLM)/.installed
	STROP_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm $(TESTS)

vllm: $(VLLM)/.installed

check: $(VENV)/.installed-dev types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m strop.flows.reference --check

types: $(VENV)/.installed-dev .types/strop
	$(BIN)/mypy .types/strop/storage .types/strop/core .types/strop/plugins .types/strop/flows

docs: $(VENV)/.installed-dev
	$(BIN)/python -m strop.flows.reference

.types/strop:
	mkdir -p .types
	ln -sfn .. .types/strop

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

# An environment of its own, which `engine: vllm` finds: vLLM holds transformers below what Strop is tested with.
$(VLLM)/.installed: constraints-vllm.txt
	@command -v $(PYTHON) >/dev/null 2>&1 && $(PYTHON) -m venv $(VLLM) || python3 -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r constraints-vllm.txt
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q $(CONSTRAINTS) "setuptools>=77" wheel
	$(PIP) install -q $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q $(CONSTRAINTS) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) .types build *.egg-info
