# The commands of this repository. Each makes and fills .venv first, where that has not happened yet.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help report check lint test nb sync docs install

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
TESTING := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg

STYLE = $(BIN)/ruff format --no-cache --check -q nbs tests tools benchmarks \
  && $(BIN)/ruff check --no-cache -q nbs tests tools benchmarks \
  && $(BIN)/ruff check --no-cache -q --select F401 synthnb
LINT = $(STYLE) && $(BIN)/mypy

help: ## these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' Makefile

report: $(READY) ## the main job: class names and a few real scans -> outputs/quickstart/<run>/report.html
	@$(BIN)/synthnb run quickstart -f nbs/experiments/params/glyphworld/quickstart.yaml $(ARGS)

check: $(READY) ## the quick part of the tests: clean, in sync, format, lint, types, imports, the rules of the repository
	@$(BIN)/mypy & types=$$!; trap 'kill $$types 2>/dev/null || true' EXIT; \
	$(BIN)/python tools/check_sync.py; $(STYLE) || exit 1; \
	$(BIN)/python tools/update_architecture.py --check; $(BIN)/python tools/update_readme.py --check; \
	$(TESTING) $(BIN)/python -m pytest -q -n 2 \
	  tests/test_imports.py tests/test_repo.py tests/test_readme.py tests/test_changelog.py; \
	wait $$types

lint: $(READY) ## format, lint and types alone
	@$(LINT)

test: $(READY) ## what CI runs: notebooks clean, modules in sync, format, lint, types, every notebook runs, pytest
	@$(BIN)/mypy & types=$$!; trap 'kill $$types 2>/dev/null || true' EXIT; \
	$(BIN)/python tools/check_sync.py; $(STYLE) || exit 1; \
	$(BIN)/python tools/measure_house.py; wait $$types
	@echo "notebooks, from $$(date +%T)"
	@$(TESTING) $(BIN)/nbdev_test --n_workers 2 --do_print
	@echo "tests, from $$(date +%T)"
	@$(TESTING) $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 --durations=10 tests

nb: $(READY) ## run a notebook top to bottom and store its outputs: make nb NB=nbs/02_lar.ipynb
	@test -n "$(NB)" || { echo "which notebook? make nb NB=nbs/02_lar.ipynb"; exit 2; }
	@$(BIN)/python tools/run_notebook.py $(NB)

sync: $(READY) ## clean all notebooks and export the modules
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export

docs: $(READY) ## the site of guides, notebooks, reports and API, with search: _docs/index.html
	@$(BIN)/python tools/build_docs.py

install: $(READY) ## only make and fill .venv

# Stamps are written last: an interrupted installation goes on at the next call.
LOCKED := $(VENV)/.locked
$(LOCKED): requirements.lock
	@test -x $(BIN)/pip || { python="$$(tools/find_python)" && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV); }
	@echo "installing the tested set (about 7 GB with torch's CUDA libraries; minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
