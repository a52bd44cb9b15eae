# The commands of a contributor. They need Python 3.11 or newer and no server: servers come from wheels.
VENV ?= .venv
INSTALLED := $(VENV)/.installed

# The environment stays until a command names another Python or Django: after `make test DJANGO=5.2`,
# `make lint` builds nothing, and `make test DJANGO=6.1` rebuilds it.
MADE_WITH := $(shell cat $(INSTALLED) 2>/dev/null)
made_with = $(patsubst $(1)=%,%,$(filter $(1)=%,$(MADE_WITH)))
PYTHON ?= $(or $(call made_with,PYTHON),python3)
# The release series of Django, as in `make test DJANGO=5.2`. At first, and with DJANGO=, the newest that fits.
DJANGO ?= $(call made_with,DJANGO)
NAMED := $(foreach name,PYTHON DJANGO,$(if $(filter command environment,$(origin $(name))),$(name)=$($(name))))
OTHER := $(filter-out $(MADE_WITH),$(NAMED))
# The remains of a failed installation are cleared as well.
CLEAR := $(if $(OTHER)$(if $(wildcard $(INSTALLED)),,nothing),--clear)

ARGS ?=
# How often `make soak` repeats each fault.
ROUNDS ?= 10

PY := $(VENV)/bin/python

.PHONY: demo test test-fast soak lint format types docs site coverage coverage-report audit bench pictures record clean other
.DEFAULT_GOAL := test

demo: $(INSTALLED)  ## the shop, its workers and the relay; with ARGS=--exit it ends after a while
	$(PY) -m example.demo $(ARGS)

# Most tests wait for other processes, so parallel tests save time; the tests of a file share a process.
test: $(INSTALLED)  ## all tests; ARGS goes to pytest
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# PostgreSQL is the only server that starts.
test-fast: $(INSTALLED)  ## the quick tests, in less than a minute; ARGS goes to pytest
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
	  -m 'not (slow or server or processes or redis or rabbitmq or hypothesis)' tests/unit tests/integration $(ARGS)

soak: $(INSTALLED)  ## the fault tests for longer; writes the table of docs/reference/faults.md
	rm -f build/faults.jsonl && mkdir -p build
	OUTBOX_SOAK_ROUNDS=$(ROUNDS) OUTBOX_SOAK_LATE_S=180 OUTBOX_FAULTS_MARGIN_S=3 \
	  OUTBOX_FAULTS_RESULTS=$(CURDIR)/build/faults.jsonl \
	  $(PY) -m pytest tests/faults $(ARGS); tested=$$?; \
	  $(PY) -m tests.faults.report build/faults.jsonl && exit $$tested

lint: $(INSTALLED)  ## style, the contracts between modules, and limits of length
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(PY) -m tests.support.limits

format: $(INSTALLED)  ## fix the style where ruff can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(INSTALLED)
	$(PY) -m mypy

docs: site  ## the site, and the tests of its links and code; ARGS=serve serves the site, other ARGS go to pytest
ifeq ($(ARGS),serve)
	$(PY) -m http.server --bind 127.0.0.1 --directory build/site 8000
else
	$(PY) -m pytest tests/docs $(ARGS)
endif

site: $(INSTALLED)  ## the documentation site in build/site; warnings are errors
	$(PY) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/site

coverage: $(INSTALLED)  ## all tests with coverage of their processes; fails below the floors
	rm -rf build/coverage && mkdir -p build/coverage
	$(PY) -m coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(MAKE) coverage-report

coverage-report: $(INSTALLED)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report --show-missing --skip-covered
	$(PY) -m coverage json --quiet && $(PY) -m coverage html --quiet
	$(PY) -m tests.support.coverage_floor

audit: $(INSTALLED)  ## known vulnerabilities of the dependencies (online), and the workflows of CI (offline)
	$(PY) -m pip_audit --skip-editable
	$(VENV)/bin/zizmor --offline .github

bench: $(INSTALLED)  ## compare with floors and peers; ARGS=--help lists the options
	$(PY) -m tests.benchmarks $(ARGS)

pictures: $(INSTALLED)  ## the pictures of the admin in docs/images; needs chromium and chromedriver
	OUTBOX_PICTURES=$(CURDIR)/docs/images $(PY) -m pytest tests/browser/test_pictures.py $(ARGS)

record: $(INSTALLED)  ## after a release: record its rows, messages and statements for the next one
	$(PY) -m tests.upgrades.record

other:

clean:
	rm -rf $(VENV) .bench build dist .hypothesis .import_linter_cache .mypy_cache .nox .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(if $(OTHER),other)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.13"; exit 1; }
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'  # the first version with dependency groups
	$(PY) -m pip install --quiet --editable '.[redis,rabbitmq]' --group dev $(if $(DJANGO),'Django==$(DJANGO).*')
	@echo "PYTHON=$(PYTHON) DJANGO=$(DJANGO)" >$@
