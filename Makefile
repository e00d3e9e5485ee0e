# Every target sets up what it needs. PYTHON chooses the interpreter, PIP_ARGS the source of torch.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONFIG ?= conf/actor_critic/pendulum.yaml
WORKERS ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: setup train test test-all check format notebooks docs docs-serve bench ui clean

setup: $(READY)  ## install everything into .venv

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

train: $(READY)  ## train a flow policy on Pendulum-v1; CONFIG=conf/... for another task
	$(BIN)/flowmatch-rl fit -c $(CONFIG)

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python -m pytest -q $(WORKERS)

test-all: $(READY)  ## the slow ones too
	$(BIN)/python -m pytest -q $(WORKERS) -m "not gpu"

check: $(READY)  ## format, lint, types, Dockerfile, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/hadolint --failure-threshold warning Dockerfile
	$(BIN)/shellcheck .ci/run examples/*.sh

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: $(READY)  ## run the .py files, which are what to edit, and store the .ipynb files; NOTEBOOKS=1_flow_matching for one
	$(BIN)/python -m notebooks $(NOTEBOOKS)

docs: $(READY)  ## the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)  ## the site at http://127.0.0.1:8000, made again when a page is saved
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(READY)  ## measure, and write benchmarks/RESULTS.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

ui: $(READY)  ## open the tracked runs in a browser
	$(BIN)/flowmatch-rl ui

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
