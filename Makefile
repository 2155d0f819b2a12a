# Each target does all of its own set-up on a machine with python3.11, make and gcc.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_output
NIGHTS ?= 30

.PHONY: setup demo test drills lint clean

setup: $(VENV)/.installed

# uv takes less than half of pip's time for the five gigabytes that torch brings, and compiles them on all cores.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode \
	    --editable '.[demo,dev]'
	touch $@

demo: setup
	$(BIN)/python jobs/demo.py --output $(DEMO)

# The suite of daily work.
test: setup
	$(BIN)/python -m pytest -m "not slow and not real_s3"

# What takes long, a month of nights among it.
drills: setup
	MNERQG_TEST_NIGHTS=$(NIGHTS) $(BIN)/python -m pytest -m "slow or real_s3"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --noconftest -o addopts= tests/test_layering.py

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
