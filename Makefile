# NovaStack. `make help` lists the targets. Needs: make and Python >= 3.11 with venv; the rest goes into $(VENV).
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
# Options for pytest: make test ARGS="-k rotate -x"
ARGS ?=
JOBS ?= 2
# make faults RESUME=1: go on with the last run, without what was kept
RESUME ?=
FAULTS_LEDGER ?= .novastack-test/faults.jsonl

python := $(VENV)/bin/python
run-env := $(PYTHON) novastack/embedded/bootstrap.py $(VENV) requirements.txt
dev-env := $(PYTHON) novastack/embedded/bootstrap.py $(VENV) requirements-dev.txt

.DEFAULT_GOAL := help
.PHONY: help run demo test faults lint bench images manage compose-secrets requirements clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

run: ## Start NovaStack here, with nothing else installed: control database, web, workers, a first database
	@$(run-env)
	@exec $(python) -m novastack.embedded up

demo: ## The main job once, on a throw-away install: create, SQL in, restart, SQL out, delete, purge
	@$(run-env)
	@exec $(python) -m novastack.embedded demo

test: ## Everything this machine can test; on real containers when a Docker engine answers
	@$(dev-env)
	@if docker info >/dev/null 2>&1; then \
	  images/build postgresql mariadb mysql socket-proxy ferretdb || { \
	    [ "$$NOVASTACK_REQUIRE_DOCKER" != 1 ] || exit 1; \
	    echo "make test: our images can't be built here; tests that need them are skipped" >&2; }; \
	elif [ "$$NOVASTACK_REQUIRE_DOCKER" = 1 ]; then \
	  echo "make test: NOVASTACK_REQUIRE_DOCKER=1, but no Docker engine answers" >&2; exit 1; \
	fi
	@$(python) -m pytest -n $(JOBS) --dist loadscope $(if $(CI),--durations=40 --durations-min=5) $(ARGS)

faults: ## Every fault on every engine and runtime there is, and the table (hours; RESUME=1 goes on; docs/reliability.md)
	@$(dev-env)
	@if docker info >/dev/null 2>&1; then images/build postgresql mariadb mysql ferretdb || exit 1; fi
	@[ "$(RESUME)" = 1 ] || rm -f $(FAULTS_LEDGER)
	@failed=0; NOVASTACK_FAULTS=all NOVASTACK_FAULTS_RESUME=$(RESUME) NOVASTACK_FAULTS_LEDGER=$(abspath $(FAULTS_LEDGER)) \
	  $(python) -m pytest tests/faults -p no:randomly $(ARGS) || failed=$$?; \
	echo; $(python) -m tests.faults.table $(FAULTS_LEDGER) || failed=1; exit $$failed

lint: ## ruff, mypy, the import contracts, missing migrations
	@$(dev-env)
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy
	@$(VENV)/bin/lint-imports
	@$(python) -W ignore manage.py makemigrations --check --dry-run

bench: ## The benchmark suite (docs/benchmarks.md)
	@$(dev-env)
	@exec $(python) -m bench $(ARGS)

images: ## Our own engine images, built from Debian packages (needs Docker; for air-gapped installs and the tests)
	@images/build $(ARGS)

manage: ## A manage.py command on the install of `make run`: make manage ARGS="control_backup --output ."
	@$(run-env)
	@exec $(python) -m novastack.embedded.manage $(ARGS)

compose-secrets: ## The secrets of docker-compose.yml, made once in ./secrets
	@images/compose-secrets

requirements: ## Pin requirements.in and requirements-dev.in anew
	@$(dev-env)
	@command -v uv >/dev/null 2>&1 || $(python) -m pip install --quiet --disable-pip-version-check uv
	@PATH="$$PATH:$(abspath $(VENV)/bin)"; export PATH; set -e; for name in requirements requirements-dev; do \
	  uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url --upgrade \
	    $$name.in --output-file $$name.txt; done

clean: ## Remove the virtualenv and caches; databases and secrets (.novastack/, secrets/) stay
	rm -rf $(VENV) $(VENV).lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache staticfiles
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
