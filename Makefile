# `make demo` and `make test` are all a newcomer needs; both make .venv from the lock when it is missing or stale.
# PYTHON=… chooses the interpreter, 3.11 to 3.14; SYSTEM_PACKAGES=no installs no Debian packages for the tests.
export PYTHON
SYSTEM_PACKAGES ?= yes
BIN := .venv/bin
STAMP := .venv/.complete

# Two test processes on two cores: threads of their own would only wait for each other.
PYTEST_2 := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2

# The tests are exact, which a GPU is not; what only a GPU can show is gpu-check's.
test test-full check: export CUDA_VISIBLE_DEVICES :=

export PYTHONHASHSEED := 0
export TOKENIZERS_PARALLELISM := false
# Where it is set, every process compiles torch from its source again: 10 s of each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: system-packages demo test test-full gpu-check check bench lock clean

demo: $(STAMP)
	$(BIN)/smdt demo

system-packages:
ifeq ($(SYSTEM_PACKAGES),yes)
	@./environment.sh --system-packages $(SYSTEM_PACKAGES_OPTIONS)
endif

test: system-packages $(STAMP)
	$(PYTEST_2) -m "not full and not gpu and not distributed"
	$(BIN)/python -m pytest tests -m "distributed and not full and not gpu"

test-full: SYSTEM_PACKAGES_OPTIONS := --full
test-full: system-packages $(STAMP) check
	$(PYTEST_2) -m "not gpu and not distributed"
	$(BIN)/python -m pytest tests -m "distributed and not gpu"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(PYTEST_2) -q -m "not slow and not full and not gpu and not distributed"

gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu

bench: $(STAMP)
	$(BIN)/python -m benchmarks.mapping
	$(BIN)/python -m benchmarks.shard_build
	$(BIN)/python -m benchmarks.input_pipeline
	$(BIN)/python -m benchmarks.first_batch
	$(BIN)/python -m benchmarks.index
	$(BIN)/python -m benchmarks.gan_step
	$(BIN)/python -m benchmarks.retrieval_step
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.recall
	$(BIN)/python -m benchmarks.two_ranks
	$(BIN)/python -m benchmarks.memory_per_rank
	$(BIN)/python -m benchmarks.capacity
	$(BIN)/python -m benchmarks.saving
	$(BIN)/python -m benchmarks.telemetry

# A stale environment is made anew: what the lock no longer names must not linger in it.
$(STAMP): requirements.lock pyproject.toml
	@./environment.sh

lock:
	$(BIN)/uv pip compile --quiet --universal --all-extras --python-version 3.11 pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv demo build
