# ErnieKit's own commands. `make quickstart` and `make test` are all a newcomer needs; `make help`
# lists the rest. Everything happens in a virtual environment beside this file (VENV, .venv).
#
# Paths are relative on purpose: a clone may lie under a path with spaces.

SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=
BIN := $(VENV)/bin
PIP := "$(BIN)/python" -m pip --disable-pip-version-check -qq
PACKAGED := setup.py pyproject.toml .ci/venv
SOURCES := erniekit tests benchmarks setup.py
# Rooms whose numbers come from kernels; tests/ops/native calls native ones whatever is chosen.
COMPUTING := --ignore=tests/ops/native --ignore=tests/ops/kernels tests/ops tests/nn tests/losses tests/models tests/optim tests/generate tests/train tests/export \
	tests/testing tests/test_assemble.py
PATH_WITH_VENV := PATH="$$PWD/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-kernels check check-native lint format docs clean install

help:
	@echo "make quickstart   install, fetch a 135M model, fine-tune, evaluate, export and chat (under 10 minutes)"
	@echo "make test         install and run every test"
	@echo "make test-kernels the tests of what computes, with Paddle's operators and with native kernels"
	@echo "make check-native the tests of the kernels under the address and undefined-behaviour sanitizers"
	@echo "make check        format, lint, types, house rules and the fast tests (under 5 minutes)"
	@echo "make lint         format, lint and types only"
	@echo "make format       rewrite the sources in the house format"
	@echo "make docs         regenerate the generated pages of docs/"
	@echo "make install      the virtual environment with everything for development"
	@echo "make clean        remove the environment, caches and outputs"
	@echo "PYTHON=python3.12 chooses an interpreter; VENV=folder another environment"

$(VENV)/.made: .ci/venv
	@.ci/venv "$(VENV)" "$(PYTHON)"
	@touch "$@"

$(VENV)/.run: $(VENV)/.made $(PACKAGED)
	@echo "installing ErnieKit and PaddlePaddle into $(VENV) (about 250 MB, once)"
	@$(PIP) install -e ".[cpu,starter]"
	@touch "$@"

$(VENV)/.test: $(VENV)/.run
	@echo "installing what the tests need"
	@$(PIP) install -e ".[cpu,starter,test]"
	@touch "$@"

$(VENV)/.dev: $(VENV)/.test
	@echo "installing ruff and mypy"
	@$(PIP) install -e ".[cpu,starter,test,dev]"
	@touch "$@"

install: $(VENV)/.dev

quickstart: $(VENV)/.run
	@$(PATH_WITH_VENV) sh recipes/00-quickstart/run.sh

test: $(VENV)/.test
	@"$(BIN)/python" -m pytest

test-kernels: $(VENV)/.test
	@ERNIEKIT_KERNELS=paddle "$(BIN)/python" -m pytest -m "not several" $(COMPUTING)
	@ERNIEKIT_KERNELS=native "$(BIN)/python" -m pytest -m "not several" $(COMPUTING)

check-native: $(VENV)/.test
	@.ci/check-native "$(BIN)/python"

lint: $(VENV)/.dev
	@"$(BIN)/ruff" format --check $(SOURCES)
	@"$(BIN)/ruff" check $(SOURCES)
	@"$(BIN)/mypy"

check: lint
	@"$(BIN)/python" -m pytest -m "not slow and not starter"

format: $(VENV)/.dev
	@"$(BIN)/ruff" format $(SOURCES)
	@"$(BIN)/ruff" check --fix $(SOURCES)

docs: $(VENV)/.test
	@"$(BIN)/python" -m tests.house.readme

clean:
	if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .native-check build dist *.egg-info output
	rm -rf recipes/*/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
