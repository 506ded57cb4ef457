# Each target sets up what it needs: a virtual environment in $(VENV), from the project's own files.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   the small CPU build of PyTorch
#   make demo ARGS="--dataset fashion_mnist"                     options of the demonstration
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
# Processes that run tests: as many as there are cores, up to four, for each holds networks.
WORKERS ?= -n auto --maxprocesses 4 --dist worksteal

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BASE := $(VENV)/.installed
ONNX := $(VENV)/.installed-onnx
FULL := $(VENV)/.installed-dev
SOURCES := ompq mixed_bit PTQ QAT recipes bit_config.py examples benchmarks docs tests

.PHONY: help install demo recipes test test-all test-fast lint format docs bench clean
.DEFAULT_GOAL := help

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@sed -n '1,3p' $(MAKEFILE_LIST) | sed 's/^# *//'

$(BASE): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
		{ echo "error: there is no $(PYTHON); install Python 3.10 or newer, or set PYTHON" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; set PYTHON=python3.11, say" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "error: $(PYTHON) -m venv failed; install python3-venv" >&2; exit 2; }
	$(if $(TORCH_INDEX),$(PIP) install --quiet --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) install --quiet --editable .
	@touch $@

$(ONNX): $(BASE)
	$(PIP) install --quiet --editable '.[onnx]' || \
		echo "note: ONNX cannot be installed here; the demonstration goes without"
	@touch $@

$(FULL): $(BASE)
	$(PIP) install --quiet --editable '.[dev]'
	@for extra in lite pytorchcv dali; do \
		$(PIP) install --quiet --editable ".[$$extra]" || \
			echo "note: the optional extra '$$extra' cannot be installed here; its tests skip"; \
	done
	@touch $@

install: $(BASE) ## the package and what it needs, in $(VENV)

demo: $(ONNX) ## the main job on real digits: no download, no GPU, under three minutes
	$(BIN)/python examples/demo.py $(ARGS)

recipes: $(ONNX) ## all recipes that need no ImageNet (hours); WEIGHTS=folder of their weights
	$(BIN)/ompq-run --without imagenet $(if $(WEIGHTS),--weights $(WEIGHTS)) recipes/*.yaml $(ARGS)

test: lint test-all ## lint, types and all tests; --jobs 2 runs them beside each other

test-all: $(FULL) ## all tests
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-fast: $(FULL) ## without the slow tests
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(ARGS)

lint: $(FULL) ## ruff and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(FULL) ## put the sources into their format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(BASE) ## docs/options.md from the parsers of the scripts
	$(BIN)/python docs/build_options.py

bench: $(FULL) ## measure bit search, reconstruction, fine-tuning and what is exported (minutes)
	$(BIN)/python benchmarks/bit_search.py $(ARGS)
	$(BIN)/python benchmarks/ptq.py
	$(BIN)/python benchmarks/qat.py
	$(BIN)/python benchmarks/deploy.py

clean: ## remove the environment and everything made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		ompq_output ptq_output qat_output recipe_output demo_output float_output benchmark_output
