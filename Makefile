# Two commands do all the set-up: `make demo` and `make test`. Both make .venv themselves.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	then command -v $$p; break; fi; done)
VENV ?= .venv
PEERS ?= .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
JOBS ?= 2
# Slow tests wait for brokers and for time to pass: two of them leave two cores idle.
SLOW_JOBS ?= 3
BOUNDS := $(patsubst %,tests/engine/learners/test_%.py,kernels linear softmax) \
	$(patsubst %,tests/engine/%.py,drift/test_detectors drift/test_monitor metrics/test_prequential) \
	tests/engine/training/test_replay.py tests/engine/state/test_states.py \
	tests/engine/shard/test_dataset.py tests/fuzz/test_streams.py \
	$(patsubst %,tests/connectors/%.py,decode/test_scanner encode/test_weaving) \
	$(patsubst %,tests/connectors/decode/test_%_decoder.py,column arrow)
MYPYPATH := src

.PHONY: demo test test-slow test-bounds kafka check docs bench bench-full peers clean

demo: $(VENV)/.core
	$(BIN)/midstream demo

test: $(VENV)/.dev
	$(BIN)/pytest -n $(JOBS) --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow -n $(SLOW_JOBS) --dist worksteal

# What compiled kernels index is checked; they are compiled anew, and kept apart from the others.
test-bounds: $(VENV)/.dev
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(abspath $(VENV))/.bounds MIDSTREAM_TEST_KAFKA=none \
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m 'bounds or not slow' $(BOUNDS)

# An Apache Kafka to play with, on 9092 if that is free (PORT=19092 for another), until Ctrl-C.
kafka: $(VENV)/.dev
	@$(BIN)/python tests/support/kafka_broker.py $(if $(PORT),--port $(PORT))

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes the reference pages anew, and builds the site from docs/ into site/; warnings are errors.
docs: $(VENV)/.dev
	$(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev peers
	$(BIN)/python benchmarks/run.py --peers $(PEERS)

bench-full: $(VENV)/.dev peers
	$(BIN)/python benchmarks/run.py --full --peers $(PEERS)

# What the benchmarks compare with, in an environment of its own.
peers: $(PEERS)/.installed

clean:
	rm -rf $(VENV) $(PEERS) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Midstream needs Python 3.11 or 3.12; found neither (set PYTHON=/path/to/it)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit("Midstream needs Python 3.11 or 3.12; $(PYTHON) is %d.%d" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.core

$(PEERS)/.installed: pyproject.toml constraints-peers.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints-peers.txt '.[peers]'
	@touch $@
