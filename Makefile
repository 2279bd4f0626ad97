# One command each. Every target sets up .venv from the locked, hashed requirements by itself.
PYTHON ?= python3.11
VENV := .venv
# Processes that compute experiments; a cell takes one core, most of it to compile, and up to 1 GiB.
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One BLAS thread a worker: LAPACK's own threads fight with XLA's and with the other worker's.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: figures test test-full check lint bench docs lock clean

figures: $(READY)
	OPENBLAS_NUM_THREADS=1 $(BIN)/dltheory run --all --profile quick --results results --workers $(WORKERS)
	$(BIN)/dltheory figures --results results --out figures --gallery docs/gallery
	$(BIN)/dltheory claims --results results

# Most of its time is compilation, which this flag shortens by a third; the full tier compiles as users do.
test: $(READY)
	XLA_FLAGS=--xla_cpu_use_fusion_emitters=false $(PYTEST) -n 2 --dist worksteal -q

test-full: $(READY)
	DLTHEORY_TEST_TIER=full $(PYTEST) -n 2 --dist worksteal -q

check: lint test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Alone on the machine, some minutes; the full tier is the one that XLA optimizes. Pairs with other
# packages run where those are installed.
bench: $(READY)
	DLTHEORY_TEST_TIER=full OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks/bench_*.py -q -p no:xdist -W default \
	  --benchmark-only --benchmark-columns=min,median,max,rounds --benchmark-group-by=group --benchmark-sort=name \
	  --benchmark-json=.benchmarks.json
	$(BIN)/python tests/benchmarks/report.py .benchmarks.json docs/benchmarks.md

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Writes the lock anew from pyproject.toml; the only target that needs uv.
lock:
	uv pip compile pyproject.toml --extra experiments --extra cluster --extra docs --extra dev \
	  --universal --generate-hashes --no-header --no-emit-index-url --no-annotate -o requirements.lock

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) results figures docs/gallery docs/_build dist build .benchmarks .benchmarks.json .hypothesis
