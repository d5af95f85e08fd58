# `make demo` and `make test` do all the set-up themselves; they need Python 3.11 (or 3.12) and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
DATA ?= synthetic
DATA_DIR ?=
SERVE ?= yes
PORT ?= 8000
EXTRA ?= cpu
BIN := .venv/bin
READY := .venv/.ready-$(EXTRA)

export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo notebooks test test-faults lint peers clean
demo: $(READY)
	$(BIN)/funnel demo --data $(DATA) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) --port $(PORT) $(if $(filter no,$(SERVE)),--no-serve)

notebooks: $(READY)
	$(BIN)/funnel notebooks

test: $(READY)
	$(BIN)/python -m pytest

test-faults: $(READY)
	$(BIN)/python -m pytest -m faults

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed (set PYTHON=/path/to/python3.11)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),dev]'
	touch $@

# SASRec of RecTools needs NumPy 1, which Feast refuses: `funnel evaluate` runs it in this environment.
peers: .venv-peers/.ready
.venv-peers/.ready: benchmarks/peers/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed (set PYTHON=/path/to/python3.11)"; exit 1; }
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/peers/constraints.txt 'rectools[torch]' pyarrow
	touch $@

clean:
	rm -rf work .venv .venv-peers
