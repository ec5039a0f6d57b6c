# `make run` and `make test` work on a machine with Python 3.11 and git alone: they make .venv, install, and do their job.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := -c constraints.txt
TESTS ?=
MARKS ?= not slow and not vllm and not gpu

.PHONY: run test test-all check types docs clean

run: $(VENV)/.installed
	$(BIN)/strop run $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "$(MARKS)" $(TESTS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not gpu" $(TESTS)

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

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q $(CONSTRAINTS) "setuptools>=77" wheel
	$(PIP) install -q $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q $(CONSTRAINTS) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .types build *.egg-info
