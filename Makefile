# All the set-up there is: `make demo` runs the main job, `make test` the checks. Both create .venv when it is missing.
SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NEED_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))
RUST_SOURCES := $(shell find rust Cargo.toml Cargo.lock -name '*.rs' -o -name 'Cargo.*' 2>/dev/null)

# The requirements of an extra alone: installing `.[dev]` would build the extension again.
extra = $(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['$(1)'])"

.PHONY: help demo test test-long test-oldest test-gpu fuzz lint check-free-threaded format bench build clean tools

help:
	@echo 'make demo       raw text to a trained model: tokenizer, shards, training, report.html (about 5 minutes)'
	@echo 'make test       the tests that need no GPU (some 15 minutes on two slow cores, once all is built)'
	@echo 'make test-long  the long forms of the property tests, and test-oldest'
	@echo 'make test-oldest  the model and training tests with torch 2.11 and transformers 4, in .venv-oldest'
	@echo 'make test-gpu   CUDA tests with the wheel in dist/ and $$PYTHON as it is (no network)'
	@echo 'make fuzz       every fuzz target for a minute: FUZZ_S=600 for longer; new inputs go to rust/fuzz/found/'
	@echo 'make lint       rustfmt, clippy, ruff, mypy, stub check'
	@echo 'make check-free-threaded  the extension compiles for a Python without GIL (nothing more is claimed)'
	@echo 'make bench      all benchmarks; rows go to benches/results/'
	@echo 'make build      abi3 wheel and sdist in dist/'

demo: $(VENV)/.train
	$(BIN)/gptrs demo

# Two files of tests at a time, in the order of their names; a file's tests stay together, for what they share.
test: $(VENV)/.dev
	cargo test --workspace --quiet
	$(BIN)/python -m pytest -m 'not gpu and not long' -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.dev
	cargo test --workspace --release --quiet -- --include-ignored
	$(BIN)/python -m pytest -m 'not gpu'
	$(MAKE) test-oldest

# What the model and training tests are: those that import torch or what needs it. The extension is the one of .venv.
OLDEST      := .venv-oldest
MODEL_TESTS := $(filter-out tests/test_lm_eval.py,$(shell grep -lE '^(import|from) torch|gptrs\.(model|train|exchange|generate|score)\b' tests/test_*.py))
test-oldest: $(VENV)/.dev $(OLDEST)/.done
	PYTHONPATH=$(CURDIR)/python $(OLDEST)/bin/python -m pytest -m 'not gpu and not long' -p no:cacheprovider $(MODEL_TESTS)

# No pip and no .venv: the wheel in dist/ and $(PYTHON)'s own torch and pytest, as on a machine without network. Other
# files of tests are not even read: they may need what is not there. pytest fails when it finds nothing to run.
GPU_TESTS := $(shell grep -l 'pytest\.mark\.gpu' tests/test_*.py)
test-gpu:
	@ls dist/*.whl >/dev/null 2>&1 || { echo 'expected a wheel in dist/, found none; hint: run make build on a machine with cargo' >&2; exit 1; }
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m zipfile -e dist/*.whl "$$folder" && \
	PYTHONPATH="$$folder:$$PYTHONPATH" $(PYTHON) -m pytest -m gpu -p no:cacheprovider $(GPU_TESTS)

# On the stable toolchain: without a sanitizer the targets find panics, overflows, endless loops and too much memory.
FUZZ_S ?= 60
FUZZ := cargo fuzz
fuzz: tools
	@$(FUZZ) --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	$(FUZZ) build --fuzz-dir rust/fuzz --sanitizer none
	@for target in $$($(FUZZ) list --fuzz-dir rust/fuzz); do \
		echo "$$target for $(FUZZ_S) s"; mkdir -p rust/fuzz/found/$$target; \
		$(FUZZ) run --fuzz-dir rust/fuzz --sanitizer none $$target rust/fuzz/found/$$target rust/fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_S) -max_len=8192 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 || exit 1; \
	done

lint: $(VENV)/.dev
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest gptrs._core

# A free-threaded Python need not be there: its configuration is a file.
check-free-threaded: | tools
	PYO3_CONFIG_FILE=$(CURDIR)/rust/gptrs-py/free-threaded.cfg CARGO_TARGET_DIR=target/free-threaded \
	cargo check --package gptrs-py --no-default-features --quiet

format: $(VENV)/.dev
	cargo fmt --all
	$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python benches/bench_tokenizer.py
	$(BIN)/python benches/bench_loader.py
	$(BIN)/python benches/bench_pack.py
	$(BIN)/python benches/bench_seek.py
	$(BIN)/python benches/bench_prepare.py
	$(BIN)/python benches/bench_train.py
	$(BIN)/python -m torch.distributed.run --nproc-per-node 2 benches/bench_parallel.py
	$(BIN)/python benches/bench_checkpoint.py
	$(BIN)/python benches/bench_model.py
	$(BIN)/python benches/learn_ablations.py
	$(BIN)/python benches/learn_costs.py
	$(BIN)/python benches/bench_quality.py
	$(BIN)/python benches/bench_muon.py deepseek_tiny
	$(BIN)/python benches/tokenizer_chart.py
	$(BIN)/python benches/table.py --write

build: $(VENV)/.dev
	rm -rf dist
	$(BIN)/maturin build --release --sdist --out dist

clean:
	rm -rf $(VENV) $(OLDEST) target dist

# One clear line with the cure when a tool is missing.
tools:
	@command -v $(PYTHON) >/dev/null || { echo 'gptrs needs Python 3.11 or newer, found none; hint: install it or run make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c '$(NEED_PYTHON)' || { echo "gptrs needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); hint: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo 'gptrs needs cargo (Rust 1.90 or newer), found none; hint: install it from https://rustup.rs, then run make again' >&2; exit 1; }

$(VENV)/bin/maturin: | tools
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip 'maturin>=1.10,<2'

# `.train`: the package as a user gets it with [train]; `.dev` and `.bench` add what the checks and the peers need. Built
# without isolation, by the maturin that builds wheels: cargo has one answer for both, not two releases to compile.
$(VENV)/.train: pyproject.toml $(VENV)/bin/maturin $(RUST_SOURCES)
	@echo 'building the extension and installing what it needs (torch is large: some minutes the first time)'
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.train
	$(BIN)/pip install --quiet --disable-pip-version-check $$($(call extra,dev))
	@touch $@

$(OLDEST)/.done: pyproject.toml | tools
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check 'torch==2.11.*' 'transformers==4.*' \
		numpy typer rich click safetensors matplotlib tensorboard pytest hypothesis tokenizers tiktoken gguf accelerate
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check $$($(call extra,bench))
	@touch $@
