# make demo: environment, installation, PPO on CartPole. make test: the plain suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH ?= ppo dqn sac impala appo
REPEATS ?= 3
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

# Two processes of one thread each, for two cores; a file goes whole to one of them.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pipelines.config_docs --check
	$(BIN)/python -m pipelines.algorithm_docs --check

types: setup
	$(BIN)/mypy

# Which comparisons, and how often each pair is run: make bench BENCH=dqn REPEATS=1
bench: setup
	set -e; for work in $(BENCH); do $(BIN)/python -m benchmarks $$work --repeats $(REPEATS); done

nightly: setup
	$(BIN)/python -m pytest -m 'learning or fault or soak or browser'

docs: setup
	$(BIN)/python -m pipelines.config_docs
	$(BIN)/python -m pipelines.algorithm_docs

clean:
	rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache
