# `make demo` and `make test` set themselves up in .venv; running them again does no more than is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format results claims benchmark gpu emoji-styles clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/elit demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The quality figures of the bundled model, written into its card and docs/evaluation.md; resumable, under an hour on two cores.
# make results DENSE=FOLDER measures a dense twin beside it.
results: $(VENV)/installed
	$(BIN)/elit results --readme docs/evaluation.md $(if $(DENSE),--dense $(DENSE))

# The paper's claims at desk scale, and their page; resumable, at most 40 minutes of two cores a claim.
claims: $(VENV)/installed
	$(BIN)/elit claims run
	$(BIN)/elit claims page --page docs/claims.md

# Emoji in seven styles at 64 x 64, which the bundled model's recipe trains on; needs npm and a network.
emoji-styles: $(VENV)/installed
	$(BIN)/elit prepare emoji-styles --out data/emoji-styles

# Best on a machine that does nothing else.
benchmark: $(VENV)/installed
	$(BIN)/python benchmarks/forward.py

# What works on a GPU and how fast, in about 14 minutes of one; the last part trains the bundled model's recipe.
gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info
