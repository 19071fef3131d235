# Python 3.11+, pip and make are all it takes; every target sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTS  ?= tests

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format docs bench clean constraints

help:  ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Conductor needs Python 3.11 or newer; this is %s (set PYTHON=...)" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV) || $(MAKE) --no-print-directory virtualenv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev --constraint constraints.txt
	@touch $@

# Debian's Python comes without ensurepip, so without a working venv; virtualenv brings what is missing.
.PHONY: virtualenv
virtualenv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(VENV)-bootstrap virtualenv
	PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv $(VENV)
	rm -rf $(VENV)-bootstrap

setup: $(STAMP)  ## make the virtual environment

run: setup  ## run the shipped workflow on the shipped project, over a broker that starts and stops with it
	@$(BIN)/conductor run examples/workflow.yaml --set project=examples/sample_project

lint: setup  ## style, types and import rules
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy conductor workers
	$(BIN)/lint-imports --no-cache

test: lint  ## lint, then every test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

docs: setup  ## build the documents as a site, in build/site
	$(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure against the peers, in one run on one server
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench --constraint constraints.txt
	@$(BIN)/python -m benchmarks

constraints: setup  ## pin what pyproject.toml allows, for the test matrix
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url --group dev --group bench pyproject.toml --output-file constraints.txt

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
