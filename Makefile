# Every target sets up what it needs first; see `make help`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export BENTOML_DO_NOT_TRACK := True
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install up drift test lint bench docs clean

help: ## Explain every target
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Make .venv with everything in it

$(INSTALLED): requirements.txt pyproject.toml scripts/make_venv
	PYTHON=$(PYTHON) scripts/make_venv $(VENV)
	@touch $@

up: $(INSTALLED) ## Train where there is no champion yet, serve it, and stream the log until Ctrl-C
	@scripts/get_fashion_mnist
	@exec $(BIN)/plumbline up

KIND ?= dark

drift: $(INSTALLED) ## Play drifting traffic against what `make up` started; KIND=dark|blur|noise|foreign|prior|concept
	@$(BIN)/plumbline drift $(KIND)

test: $(INSTALLED) ## Run the test suite (the longer tests: .venv/bin/pytest -m slow)
	@scripts/get_fashion_mnist
	$(BIN)/pytest

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure serving against the raw loop, and the drift alarm (docs/performance.md)
	$(BIN)/python bench/serve.py pace
	$(BIN)/python bench/serve.py steps
	$(BIN)/python bench/evidence.py --home var/bench

docs: $(INSTALLED) ## Generate the reference pages of settings, commands and metrics
	$(BIN)/python -m plumbline.reference

clean: ## Remove .venv and caches; models and records in var/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
