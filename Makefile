# Two commands from a bare machine with Python >= 3.11 and git:
#   make demo   sets up .venv and runs the main job on bundled data: demo/report.html
#   make test   sets up .venv and runs the tests
# The rest is for working on the package: make lint | docs | coverage | bench | check | clean.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# -qq: errors only; a line printed before each step says what is going on.
INSTALL := $(PIP) install -qq --constraint constraints.txt
PYTEST_ARGS ?=
# Two processes share the test files; TEST_PROCESSES=0 runs them in one (for -s, --pdb).
TEST_PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
DEMO_ARGS ?=
BENCH_ARGS ?=

export MPLBACKEND ?= Agg

.PHONY: demo test coverage lint docs readme tutorials bench check install dev clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	$(BIN)/cfm demo --output demo $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) $(PYTEST_ARGS)

# The same with the coverage of src, branches included; below 90 % it fails.
coverage: $(VENV)/.installed-test
	$(PYTEST) --cov=cfm --cov-branch --cov-report=term-missing --cov-fail-under=90 $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Runs the notebooks too (two at a time); CFM_DOCS_EXECUTE=0 shows their committed outputs.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -j 2 -b html docs docs/_build/html

# Runs the example of the README and puts its output and figure there.
readme: $(VENV)/.installed-dev
	$(BIN)/python docs/refresh_readme.py

# Runs the notebooks and keeps their outputs.
tutorials: $(VENV)/.installed-dev
	MPLBACKEND=module://matplotlib_inline.backend_inline $(BIN)/jupyter execute --inplace tutorials/*.ipynb
	$(BIN)/ruff format tutorials

# Runs every benchmark on the data of $CFM_DATA (default ../shared/data) and renews the tables and
# figures of docs/benchmarks.md. Takes hours; BENCH_ARGS="virus probe" runs some.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

check: test lint docs

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# torch goes in first, at the tested version: left to itself a package that needs "torch"
# would take the newest build there is. pip 25.1 is the first that knows --group.
$(VENV)/.pip: constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| { echo "cfm needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); say make PYTHON=python3.x"; exit 1; }
	@echo "setting up $(VENV): pip and torch (a minute or two, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq --upgrade "pip>=25.1"
	@$(INSTALL) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.pip pyproject.toml
	@echo "installing cfm and its dependencies (a few minutes, once)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test tools"
	@$(INSTALL) --group test
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "installing the dev tools"
	@$(INSTALL) --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist demo docs/_build docs/api/generated
