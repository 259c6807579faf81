# Two commands matter to a newcomer: `make demo` and `make test`. Both build .venv on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOWER := .venv-flower
COVERED := privacy secagg he parties encoding primitives
PROTECTION := tests/he tests/parties tests/secagg tests/primitives tests/encoding
PYTEST = $(BIN)/python -m pytest -q -m "not slow" \
  $(COVERED:%=--cov=privfedrl.%) --cov-branch --cov-report=

.DEFAULT_GOAL := help
.PHONY: help demo test test-protection test-rest check bench crash-test kit kit-flower clean

help:
	@echo "make demo    train the CartPole fleet (10 agents) into runs/demo"
	@echo "make test    every test, slow and statistical ones included, with coverage"
	@echo "make check   ruff, ruff format and mypy"
	@echo "make kit     the testing kit against its own seeded defects and our protocol"
	@echo "make kit-flower  the kit against Flower's SecAgg+, in a virtual environment of its own"
	@echo "make bench   every script of benchmarks/; fails if one misses its target"
	@echo "make crash-test  240 ledger writers killed at random instants, then every invariant"
	@echo "make clean   remove .venv, runs and caches"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade "pip==25.3"
	$(BIN)/python -m pip install -c constraints.txt -e ".[all]" --group dev
	touch $@

# a run directory is never overwritten by the command itself, so the last demo goes first
demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/privfedrl train examples/plans/cartpole_fleet.toml --out runs/demo --seed 1

# 95 % of lines and branches in each package that a privacy claim rests on. Two processes share the
# work. Coverage makes the kit's tests and the slow ones several times slower and adds nothing to it.
test: $(STAMP)
	rm -f .coverage .coverage.*
	$(MAKE) -j2 --output-sync=target test-protection test-rest
	$(BIN)/python -m pytest -q -m slow --ignore=tests/testing
	$(BIN)/python -m coverage combine -q .coverage.protection .coverage.rest
	for package in $(COVERED); do \
	  $(BIN)/python -m coverage report --include="*/privfedrl/$$package/*" --skip-covered \
	    --show-missing --fail-under=95 || exit 1; \
	done

test-protection:
	COVERAGE_FILE=.coverage.protection $(PYTEST) $(PROTECTION)
	$(BIN)/python -m pytest -q tests/testing

test-rest:
	COVERAGE_FILE=.coverage.rest $(PYTEST) $(PROTECTION:%=--ignore=%) --ignore=tests/testing

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@failed=""; \
	for script in benchmarks/*.py; do \
	  echo "== $$script"; \
	  $(BIN)/python "$$script" || failed="$$failed $$script"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# a charge must be durable before anything is released, whenever the process dies
crash-test: $(STAMP)
	$(BIN)/python audits/crash_test.py

# every seeded defect must be noticed, and nothing be noticed where there is no defect
kit: $(STAMP)
	$(BIN)/python -m privfedrl.testing.mutants --jobs 2

# not part of the tests: other people's code, at the version that the report names
kit-flower:
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --upgrade "pip==25.3"
	$(FLOWER)/bin/python -m pip install -c constraints.txt -e ".[testing]" -r audits/flower/requirements.txt
	$(FLOWER)/bin/python audits/flower/run.py --out audits/reports

clean:
	rm -rf $(VENV) $(FLOWER) runs .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis
