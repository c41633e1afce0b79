# `make demo` and `make test` do all the set-up on a machine with python3, g++ and make.
# `make cuda-build` needs nvcc as well, and no GPU; `make gpu-check` wants a GPU and a torch for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := runs/demo
CUDA_VENV := .venv-cuda
CUDA_ARCHS := 8.0 9.0a
MACHINE_PATH := $(PATH)
PYTEST := $(BIN)/python -m pytest -q
PYTEST_ON_EVERY_CORE := OMP_NUM_THREADS=1 $(PYTEST) -n auto --dist worksteal
# The extension is built by setuptools with ninja from the environment, in parallel.
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' \
	-o -name '*.cu' -o -name '*.cuh')
CXX_FILES = $$(git ls-files $(foreach suffix,cpp h inl cu cuh,'csrc/*.$(suffix)' 'tests/*.$(suffix)' \
	'benchmarks/gpu/exchange/*.$(suffix)'))

.PHONY: demo test test-fast sanitize lint format build bench sdist cuda-build gpu-check clean

demo: build
	$(BIN)/python -m examples.char_lm train --minutes 1 --compare --overwrite --out $(DEMO_OUT)
	$(BIN)/python -m examples.char_lm sample $(DEMO_OUT) --prime "def " --length 300 --seed 0

# A process for each core, whose threads would only wait for each other, then the tests that want the
# cores for themselves.
test: build
	$(PYTEST_ON_EVERY_CORE) -m "not alone"
	$(PYTEST) -m alone

test-fast: build
	$(PYTEST_ON_EVERY_CORE) -m "not slow and not alone"
	$(PYTEST) -m "alone and not slow"

# The CPU half under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer, in
# builds of their own, and a test that each of them finds a planted fault.
sanitize: build
	$(BIN)/python tests/kernels/sanitizers.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/.built

bench: build
	$(BIN)/python benchmarks/bench_cells.py --grid full --csv benchmarks/results/cells.csv

sdist: $(VENV)/.installed
	$(BIN)/python -m build --no-isolation --sdist

# Compiles and links the CUDA half out of place, for two architectures, with warnings and register
# spills as errors, and imports it in a fresh process.
cuda-build: $(CUDA_VENV)/.installed
	TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" $(CUDA_VENV)/bin/python tests/cuda/cuda_build.py build/cuda

# With the torch of the machine, which fits its GPU, and not that of .venv.
gpu-check: export PATH := $(MACHINE_PATH)
gpu-check:
	$(PYTHON) -m benchmarks.gpu.check

# Stamps: made again when what they depend on changes.
$(VENV)/.installed: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(CUDA_VENV)/.installed: requirements-cuda.txt
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install -q --disable-pip-version-check -r requirements-cuda.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info fastlstm/*.so $(VENV)/.built
