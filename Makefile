# The few verbs of the project. `make demo` and `make test` need nothing but Python 3.11 (and, for the tests, Java 17 and
# Maven for a real Kafka broker): everything else is set up in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_WORKERS ?= 2
DOCKER ?= docker
IMAGE_BUILD_OPTIONS ?=
STACKS ?= tests/stacks
SOAK_MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help demo test faults soak image stacks chart lint format bench sweep plots docs lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gapconn needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V): run 'make PYTHON=python3.11 ...'" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/ready  ## two real processes, a lossy gap between them, and what becomes of the data
	@$(BIN)/gapconn demo

# Tests of real processes share the machine with each other and with a broker, and can be late. What fails is said, and
# then run once more with the machine for itself: what fails twice fails.
test: $(VENV)/ready  ## the whole test suite, with a real Kafka broker
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) || { \
	  code=$$?; [ $$code = 1 ] || exit $$code; \
	  echo; echo "=== FAILED beside other tests (above); once more, one at a time ==="; \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

faults: $(VENV)/ready  ## kill, stop, cut and fill everything, and account for every record (2 hours)
	@mkdir -p build
	@rm -f build/faults.jsonl
	GAPCONN_FAULTS=long GAPCONN_FAULTS_REPORT=$(CURDIR)/build/faults.jsonl $(BIN)/python -m pytest tests/faults
	$(BIN)/python -m tests.faults.table build/faults.jsonl docs/faults.md

soak: $(VENV)/ready  ## SOAK_MINUTES=30 at half the top rate: memory and open files stay flat
	GAPCONN_FAULTS_SOAK_S=$$(($(SOAK_MINUTES) * 60)) $(BIN)/python -m pytest -s tests/faults/test_soak.py

image:  ## the container image gapconn:local (needs a Docker engine)
	$(DOCKER) build $(IMAGE_BUILD_OPTIONS) -f compose/Dockerfile -t gapconn:local .

stacks: $(VENV)/ready  ## every stack of compose/: started, broken, and every record accounted for (needs the image)
	@$(BIN)/python -m pytest -m docker $(STACKS)

chart: $(VENV)/ready  ## the Helm chart: lint, and what it renders (needs helm)
	@$(BIN)/python -m pytest -m helm tests/kubernetes

lint: $(VENV)/ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready  ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready  ## measure, as ratios to plain programs in the same run (15 minutes)
	@mkdir -p build
	$(BIN)/python -m bench --json build/bench.json

sweep: $(VENV)/ready  ## measure throughput by MTU, repair and security (6 minutes)
	@mkdir -p build
	$(BIN)/python -m bench.sweep --json build/sweep.json

$(VENV)/plots-ready: $(VENV)/ready requirements-bench.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

build/bench.json:
	$(MAKE) bench

build/sweep.json:
	$(MAKE) sweep

plots: $(VENV)/plots-ready build/bench.json build/sweep.json  ## put what bench and sweep measured into docs/
	$(BIN)/python -m bench.plots build/bench.json build/sweep.json docs/plots
	$(BIN)/python -m bench.table build/bench.json docs/performance.md

docs: $(VENV)/ready  ## write again what is generated in docs/ and spec/
	$(BIN)/python -m gapconn.reference > docs/configuration.md
	$(BIN)/python -m tests.spec

lock:  ## resolve the dependencies anew into requirements.lock (needs uv)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
	  --quiet --no-header --output-file requirements.lock
	uv pip compile pyproject.toml --group bench --universal --python-version 3.11 --generate-hashes \
	  --constraint requirements.lock --quiet --no-header --output-file requirements-bench.lock

clean:  ## remove what was set up and built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
