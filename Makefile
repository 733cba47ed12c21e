# `make` lists the targets. Variables: PYTHON (interpreter the .venv is made with), VENV, JOBS, RUN.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
RUN ?= runs/demo
COVERAGE ?=
FIDELITY ?=

DEMO = cpd-edge prune zoo:resnet8 --data digits --train --train-epochs 8 --epochs 24 --speedup 2 --out runs/demo

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint ci/constraints.txt --editable
# Says how long a stage took: $(TIMED) command
TIMED := TIMEFORMAT='-- %R s'; time

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 16

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' on the path: make PYTHON=/path/to/python3.10-or-newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "cpd-edge needs Python 3.10 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml ci/constraints.txt
	@echo "installing cpd-edge[cpu] into $(VENV): torch is several GB, this takes minutes"
	@$(TIMED) $(INSTALL) '.[cpu]'
	@touch $@

$(VENV)/.all: $(VENV)/.made pyproject.toml ci/constraints.txt
	@echo "installing cpd-edge[cpu,zoo,dev] into $(VENV): torch is several GB, this takes minutes"
	@$(TIMED) $(INSTALL) '.[cpu,zoo,dev]'
	@touch $@ $(VENV)/.demo

.PHONY: install
install: $(VENV)/.all ## make .venv with everything the tests need

.PHONY: demo
demo: $(VENV)/.demo ## train a small network, prune it to half its latency on this CPU, write the report
	rm -rf runs/demo
	$(BIN)/$(DEMO)

.PHONY: lint
lint: $(VENV)/.all ## style, types and the import rules
	@$(TIMED) $(BIN)/ruff check .
	@$(TIMED) $(BIN)/ruff format --check .
	@$(TIMED) $(BIN)/mypy
	@$(TIMED) $(BIN)/lint-imports --cache-dir .cache/import-linter

.PHONY: test
test: lint ## lint, then every test
	@$(TIMED) $(BIN)/pytest --numprocesses $(JOBS) --quiet --durations 10

.PHONY: kernels
kernels: $(VENV)/.all ## compile every CUDA kernel for every architecture: registers, spills, bytes
	@$(TIMED) $(BIN)/python -m cpd_edge.kernels $(if $(RECORD),--record)

.PHONY: bench
bench: $(VENV)/.all ## time the code itself (solver, statistics, report)
	$(BIN)/pytest tests/benchmarks --benchmark-enable --benchmark-only

.PHONY: fidelity
fidelity: $(VENV)/.all ## predicted beside measured latency of whole networks: writes reports/fidelity; an hour, a quiet machine
	$(BIN)/python tests/benchmarks/fidelity_run.py --out reports/fidelity $(FIDELITY)

.PHONY: landing
landing: $(VENV)/.all ## how near builds land to their budgets: writes reports/landing; ten minutes, a quiet machine
	$(BIN)/python tests/benchmarks/landing.py torchvision:resnet18 torchvision:mobilenet_v2 --out reports/landing

.PHONY: compare-solvers
compare-solvers: $(VENV)/.all ## the exact choice beside the baselines on drawn problems: writes reports/solver
	$(BIN)/python tests/benchmarks/solver_report.py

$(VENV)/.coverage: $(VENV)/.all
	@echo "installing Torch-Pruning and transformers into $(VENV)"
	@$(TIMED) $(INSTALL) '.[cpu,zoo,dev,coverage]'
	@touch $@

.PHONY: coverage
coverage: $(VENV)/.coverage ## cut and verify 121 networks, beside Torch-Pruning; hours, resumes: make coverage COVERAGE='--only resnet'
	$(BIN)/python tests/benchmarks/coverage_run.py $(COVERAGE)

.PHONY: report
report: $(VENV)/.demo ## write a run's report again: make report RUN=runs/demo
	$(BIN)/cpd-edge report $(RUN)

.PHONY: clean
clean: ## remove caches and build products; .venv and runs stay
	rm -rf .cache .benchmarks .hypothesis .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build dist
	find cpd_edge tests -name __pycache__ -type d -prune -exec rm -rf {} +
