# make demo: environment, installation, PPO on CartPole. make test: the plain suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORAGE ?= $(HOME)/ray_results
PACKAGES := rl_ops offline pipelines workflows
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint types bench nightly docs clean

setup: $(STAMP)

# Bytecode is compiled here: Ray's processes write no caches, and without them start-up doubles.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,video]'
	$(BIN)/python -m compileall -q $(VENV)/lib $(PACKAGES) || true
	touch $(STAMP)

demo: setup
	$(BIN)/millrace example run cartpole-ppo --storage $(STORAGE)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pipelines.config_docs --check

types: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

nightly: setup
	$(BIN)/python -m pytest -m 'learning or fault or soak'

docs: setup
	$(BIN)/python -m pipelines.config_docs

clean:
	rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache
