# The front door. Needs Python 3.11 or newer, and nothing else: servers come from wheels.
VENV ?= .venv
INSTALLED := $(VENV)/.installed

# An environment stays as it was made until something else is named: `make lint` after `make test DJANGO=5.2`
# builds nothing, `make test DJANGO=6.1` does.
MADE_WITH := $(shell cat $(INSTALLED) 2>/dev/null)
made_with = $(patsubst $(1)=%,%,$(filter $(1)=%,$(MADE_WITH)))
PYTHON ?= $(or $(call made_with,PYTHON),python3)
# A release series of Django to test with, as in `make test DJANGO=5.2`; at first, and with DJANGO=, the newest
# that fits.
DJANGO ?= $(call made_with,DJANGO)
NAMED := $(foreach name,PYTHON DJANGO,$(if $(filter command environment,$(origin $(name))),$(name)=$($(name))))
OTHER := $(filter-out $(MADE_WITH),$(NAMED))
# What an installation that failed has left is of no use either.
CLEAR := $(if $(OTHER)$(if $(wildcard $(INSTALLED)),,nothing),--clear)

ARGS ?=
# How often `make soak` repeats each fault.
ROUNDS ?= 10

PY := $(VENV)/bin/python

.PHONY: demo test soak lint format types docs bench record clean other
.DEFAULT_GOAL := test

demo: $(INSTALLED)  ## the shop, its workers and the relay; ARGS=--exit ends by itself
	$(PY) -m example.demo $(ARGS)

# Most tests wait for other processes, so several at a time pay off; each file stays in one process.
test: $(INSTALLED)  ## all tests; ARGS goes to pytest
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(INSTALLED)  ## the fault tests for longer; writes the table of docs/reference/faults.md
	rm -f build/faults.jsonl && mkdir -p build
	OUTBOX_SOAK_ROUNDS=$(ROUNDS) OUTBOX_SOAK_LATE_S=180 OUTBOX_FAULTS_MARGIN_S=3 \
	  OUTBOX_FAULTS_RESULTS=$(CURDIR)/build/faults.jsonl \
	  $(PY) -m pytest tests/faults $(ARGS); tested=$$?; \
	  $(PY) -m tests.faults.report build/faults.jsonl && exit $$tested

lint: $(INSTALLED)  ## style and the contracts between modules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports

format: $(INSTALLED)  ## what lint can put right by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(INSTALLED)
	$(PY) -m mypy

docs: $(INSTALLED)  ## links and paths of the documentation
	$(PY) -m pytest tests/docs $(ARGS)

bench: $(INSTALLED)  ## beside floors and peers; ARGS=--help tells the options
	$(PY) -m tests.benchmarks $(ARGS)

record: $(INSTALLED)  ## after a release, what the next one is tested with
	$(PY) -m tests.upgrades.record

other:

clean:
	rm -rf $(VENV) .bench build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml $(if $(OTHER),other)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.13"; exit 1; }
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'  # the first to know dependency groups
	$(PY) -m pip install --quiet --editable '.[redis,rabbitmq]' --group dev $(if $(DJANGO),'Django==$(DJANGO).*')
	@echo "PYTHON=$(PYTHON) DJANGO=$(DJANGO)" >$@
