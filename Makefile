# Each target sets up what it needs: a virtual environment, once, then the project itself from this folder.
VENV ?= .venv
PYTHON ?= python3
DEMO ?= demo
DEMO_OPTIONS ?=
BIN := $(VENV)/bin

.PHONY: help venv demo test servers check nightly bench clean

help:
	@echo "make demo     simulate a bank's log, compare five scorers, bundle the best, serve it ($(DEMO)/)"
	@echo "make test     the tests that need under a minute each"
	@echo "make servers  the tests that run servers, kill them and load them"
	@echo "make check    format, lint, types, tests: what CI runs"
	@echo "make nightly  every test, the slow ones too (reads ../shared/data where it is there)"
	@echo "make bench    the scripts in benchmarks/ and their ratios (an hour or two)"
	@echo "make clean    remove what these targets made"

venv: $(VENV)/.installed

# torch first and by itself: it is the largest, and what else is installed must fit the build of it that was found.
$(VENV)/.installed: pyproject.toml requirements-test.txt
	@echo "Installing into $(VENV): once, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(head -n 1 requirements-test.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt -e '.[dev]'
	@touch $@

demo: venv
	$(BIN)/fraud demo --out $(DEMO) --overwrite $(DEMO_OPTIONS)

test: venv
	$(BIN)/python -m pytest -n 2 -m "not slow and not server"

servers: venv
	$(BIN)/python -m pytest -n 2 -m "server and not slow"

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2 -m "not slow and not server"

nightly: venv
	$(BIN)/python -m pytest -n 2

bench: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@set -e; for script in $(filter-out benchmarks/quality.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script; done
	$(BIN)/python -m benchmarks.quality --work build/quality

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
