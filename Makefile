# `make` alone lists the targets.
VENV ?= .venv
# The Python of an environment that exists already, so that PYTHON= needs to be said once only.
PYTHON ?= $(shell $(VENV)/bin/python -c '' 2>/dev/null && echo $(VENV)/bin/python || echo python3.11)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-zoo reliability fuzz lint types format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'VENV=folder says where the environment is (.venv), PYTHON=command what to make it with (python3.11).'

setup: ## make the environment, or bring it up to date
	@$(PYTHON) -c '' 2>/dev/null || { echo "'$(PYTHON)' does not run: install Python 3.11 (on Debian" \
	  "'apt-get install python3.11 python3.11-venv python3.11-dev'), or name one with PYTHON=command"; exit 1; }
	@$(PYTHON) dev/setup_env.py --venv $(VENV)

demo: setup ## train a small 2-bit model and deploy it
	$(BIN)/python demo/demo.py

test: lint types ## check the style and the types, then run all tests; ARGS= goes to pytest
	$(BIN)/python -m pytest $(ARGS)

test-zoo: setup ## take a training step with every shipped config
	$(BIN)/python -m pytest -m zoo tests/integration/test_configs.py $(ARGS)

reliability: setup ## kills, full disks, hostile files and a long training, for about an hour
	$(BIN)/python -W ignore benchmarks/reliability/run.py $(ARGS)

fuzz: setup ## fuzz what reads files of strangers, with atheris in an environment of its own, for 20 minutes
	$(BIN)/python benchmarks/reliability/fuzz_atheris.py $(ARGS)

lint: setup ## check the style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup ## check the types
	$(BIN)/mypy

format: setup ## mend the style where that can be done automatically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what builds and tests left; the environment stays
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find mmgdrq tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
