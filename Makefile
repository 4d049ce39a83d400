# Two commands are all a newcomer needs: `make demo` and `make test`. Each sets up .venv first.
#
#   PYTHON=python3.12                      another interpreter (3.11 or newer)
#   TORCH=path/to/torch.whl                another torch: a wheel, or a requirement such as torch==2.13.0
#   TORCH_INDEX=https://host/path/simple   the package index that torch comes from
#   JOBS=4                                 processes of the tests (2)

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev
PROMPT := Write a short story about two singers.

MAKEFLAGS += --no-print-directory
.PHONY: help demo test test-full lint docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       set up .venv, pull the small model, stream an answer"
	@echo "make test       set up .venv, then lint, types, contracts, pages and the tests"
	@echo "make test-full  the same with the tests that take minutes, then the benchmark records"
	@echo "make lint       formatting, lint, types, import contracts, generated pages"
	@echo "make docs       write the generated pages again"
	@echo "make clean      remove .venv and caches (pulled models stay)"

$(RUN_STAMP): pyproject.toml
	@$(PYTHON) tools/setup_env.py --venv $(VENV) --torch '$(TORCH)' --torch-index '$(TORCH_INDEX)'
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@$(PYTHON) tools/setup_env.py --venv $(VENV) --extra dev
	@touch $@

demo: $(RUN_STAMP)
	@$(BIN)/stretto pull smollm2
	@$(BIN)/stretto run smollm2 "$(PROMPT)" --no-stdin -n 120 --temp 0 --stats
	@echo
	@echo "Try next:"
	@echo "  $(BIN)/stretto run smollm2                      chat in the terminal"
	@echo "  $(BIN)/stretto run smollm2 \"...\" --draft ngram --show-draft"
	@echo "  $(BIN)/stretto doctor                           what this machine offers and what was chosen"
	@echo "  $(BIN)/stretto list                             every mixer, codec, drafter and judge"

lint: $(DEV_STAMP)
	@echo "== lint"
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@echo "== types"
	@$(BIN)/mypy --no-error-summary
	@echo "== import contracts"
	@$(BIN)/lint-imports > $(VENV)/lint-imports.txt || { cat $(VENV)/lint-imports.txt; exit 1; }
	@echo "== generated pages"
	@$(BIN)/python tools/make_docs.py --check

test: lint
	@$(BIN)/stretto pull smollm2
	@echo "== tests"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-full: lint
	@$(BIN)/stretto pull smollm2
	@echo "== all tests"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m ""
	@echo "== records"
	@$(BIN)/python bench/foundation.py

docs: $(DEV_STAMP)
	@$(BIN)/python tools/make_docs.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
