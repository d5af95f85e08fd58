# `make demo` and `make test` install everything they need; they need Python 3.11 or 3.12, and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
DATA ?= $(if $(filter full,$(DEMO)),synthetic-full,synthetic)
DATA_DIR ?=
DEMO ?= quick
SERVE ?= yes
PORT ?= 8000
EXTRA ?= cpu
WORKERS ?= 2
BIN := .venv/bin
RUN := .venv/.ready-$(EXTRA)

export OMP_WAIT_POLICY ?= PASSIVE
# Container images often set it. Python would then compile some 3,000 modules at every start: 10 seconds more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo notebooks test test-faults test-cluster lint peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(RUN) ## run all stages and serve: DEMO=full, DATA=<name or dataset.toml>, DATA_DIR=<folder>, SERVE=no, PORT=8000
	@$(BIN)/funnel demo --data $(DATA) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) --port $(PORT) \
	  $(if $(filter full,$(DEMO)),--full) $(if $(filter no,$(SERVE)),--no-serve)

notebooks: $(RUN)-notebooks ## run the notebooks on the working folder in use, as pages in work/notebooks/
	$(BIN)/funnel notebooks

test: $(RUN)-test ## run the tests, in WORKERS=2 processes and in random order
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test-faults: $(RUN)-test ## run the long fault tests
	$(BIN)/python -m pytest -m faults

test-cluster: $(RUN)-test ## run the tests on a Spark cluster of processes
	$(BIN)/python -m pytest -m cluster

lint: $(RUN)-lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: .venv-peers/.ready ## install SASRec of RecTools beside, for funnel evaluate

clean: ## remove environments and working folders
	rm -rf work .venv .venv-peers

# Installs into environment $(1) with constraints $(2) the packages $(3). pip writes to a log, which is shown if it fails.
define install
@echo "Installing $(3) (about 5 minutes at first; log: $(1)/install.log)"
@$(1)/bin/python -m pip install --disable-pip-version-check --no-input --no-compile -c $(2) $(3) \
  >$(1)/install.log 2>&1 || { tail -n 40 $(1)/install.log; exit 1; }
@touch $@
endef

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv

# pip compiles nothing (500 MB): one import compiles what running needs.
$(RUN): pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.venv,constraints.txt,-e '.[$(EXTRA)]')
	@$(BIN)/python -c 'import pipelines.features.spark_job, pipelines.training.train, pipelines.workflow.demo'

$(RUN)-notebooks $(RUN)-test $(RUN)-lint: $(RUN)-%: $(RUN)
	$(call install,.venv,constraints.txt,-e '.[$(EXTRA)$(comma)$*]')

comma := ,

# SASRec of RecTools needs NumPy 1, which Feast refuses: `funnel evaluate` runs it in this environment.
.venv-peers/.ready: benchmarks/peers/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv-peers
	$(call install,.venv-peers,benchmarks/peers/constraints.txt,'rectools[torch]' pyarrow)
