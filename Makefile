# `make demo` and `make test` do all the set-up on a machine with python3, g++ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := runs/demo
# The extension is built by setuptools with ninja from the environment, in parallel.
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')

.PHONY: demo test test-fast lint format build bench sdist clean

demo: build
	$(BIN)/python -m examples.char_lm train --minutes 1 --compare --overwrite --out $(DEMO_OUT)
	$(BIN)/python -m examples.char_lm sample $(DEMO_OUT) --prime "def " --length 300 --seed 0

test: build
	$(BIN)/python -m pytest -q

test-fast: build
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inl')

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.inl')

build: $(VENV)/.built

bench: build
	$(BIN)/python benchmarks/bench_cells.py --grid full --csv benchmarks/results/cells.csv

sdist: $(VENV)/.installed
	$(BIN)/python -m build --no-isolation --sdist

# Stamps: made again when what they depend on changes.
$(VENV)/.installed: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info fastlstm/*.so $(VENV)/.built
