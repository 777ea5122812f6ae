# Two commands from a bare machine with Python >= 3.11 and git:
#   make demo   sets up .venv and runs the main job on bundled data: demo/report.html
#   make test   sets up .venv and runs the tests
# The rest is for working on the package: make lint | docs | coverage | bench | check | clean, and
# make test-latest | test-lowest for the newest and the oldest versions of what it stands on.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# -qq: errors only; a line printed before each step says what is going on.
INSTALL := $(PIP) install -qq --constraint constraints.txt
PYTEST_ARGS ?=
# Two processes share the test files; TEST_PROCESSES=0 runs them in one (for -s, --pdb).
TEST_PROCESSES ?= 2
PYTEST := -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
DEMO_ARGS ?=
BENCH_ARGS ?=

export MPLBACKEND ?= Agg

.PHONY: demo test test-latest test-lowest versions coverage lint docs readme tutorials bench check install dev clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	$(BIN)/cfm demo --output demo $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

# The newest versions there are, without constraints, on the newest Python: what reads, writes and
# draws data; LATEST_TESTS=tests runs everything.
LATEST_PYTHON ?= python3.13
LATEST_TESTS ?= $(addprefix tests/,data datasets environments matrix metrics pl pp stats tl)
test-latest:
	$(call environment,.venv-latest,$(LATEST_PYTHON),--upgrade --editable . --group test)
	.venv-latest/bin/python $(PYTEST) $(LATEST_TESTS) -m "not slow" $(PYTEST_ARGS)

# The oldest versions that pyproject.toml allows, on the oldest Python: the matrix of inputs, the
# smoke test and the demo. The package is installed, not linked, as the smoke test wants it.
LOWEST_PYTHON ?= python3.11
test-lowest:
	$(call environment,.venv-lowest,$(LOWEST_PYTHON),--resolution lowest-direct \
		--reinstall-package cfm-tools --refresh-package cfm-tools . --group runner)
	.venv-lowest/bin/python $(PYTEST) tests/matrix tests/environments $(PYTEST_ARGS)
	.venv-lowest/bin/python tests/release/smoke.py
	.venv-lowest/bin/cfm demo --output demo $(DEMO_ARGS)

define environment # folder, Python, what is installed
@test -x $(1)/bin/python || $(2) -m venv $(1)
@echo "installing into $(1) (a few minutes, once)"
@$(1)/bin/python -m pip --disable-pip-version-check install -qq uv
@$(1)/bin/uv pip install -q --compile-bytecode --python $(1)/bin/python $(3)
@$(1)/bin/python tests/release/versions.py
endef

versions: $(VENV)/.installed
	@$(BIN)/python tests/release/versions.py

# The same as `make test` with the coverage of src, branches included; below 90 % it fails.
coverage: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) --cov=cfm --cov-branch --cov-report=term-missing --cov-fail-under=90 $(PYTEST_ARGS)

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
	rm -rf $(VENV) .venv-latest .venv-lowest build dist demo docs/_build docs/api/generated
