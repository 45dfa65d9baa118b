# `make help` lists the targets. PYTHON names the interpreter that .venv is made from.
PYTHON ?= python3
PYTEST_ARGS ?= -n auto --dist worksteal
FUZZ_INPUTS ?= 100000

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev
PROTOS := $(wildcard protos/sequoia/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test fuzz chaos test-containers check protos lock secrets clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with everything that Sequoia needs to run

install-dev: $(INSTALLED_DEV) ## The same with the tools for tests and checks

demo: $(INSTALLED) ## Start the whole system on this machine and generate a text
	@$(BIN)/sequoia demo

test: $(INSTALLED_DEV) ## Run the tests on all cores; PYTEST_ARGS='-k tree' narrows them
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-containers: $(INSTALLED_DEV) ## Build the image and break the compose stack, on a Docker engine
	PYTHON=$(BIN)/python tests/e2e/containers.sh

fuzz: $(INSTALLED_DEV) ## Feed damaged input to every RPC and to whatever reads Redis; FUZZ_INPUTS=1000 for less
	$(BIN)/python -m tests.fuzz --inputs $(FUZZ_INPUTS)

chaos: $(INSTALLED_DEV) ## Break the running system in every way and write docs/reliability.md; FAULTS='redis or draft' for some
	CHAOS_TESTS=1 $(BIN)/python -m pytest -p no:randomly -n 0 tests/chaos $(if $(FAULTS),-k '$(FAULTS)')

check: $(INSTALLED_DEV) ## Lint, formatting, types, API comments and names
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/hadolint Dockerfile

protos: $(INSTALLED_DEV) ## Write sequoia/v1 anew from protos/
	rm -f sequoia/v1/*_pb2.py sequoia/v1/*_pb2.pyi sequoia/v1/*_pb2_grpc.py
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. --pyi_out=. $(PROTOS)

lock: $(INSTALLED_DEV) ## Pin the packages of the container image anew, with their hashes
	$(BIN)/python deploy/requirements/lock.py

# Containers run as users of their own and must be able to read the file; the folder keeps others away.
secrets: ## Make a password for the Redis of docker-compose.yml, unless there is one
	@mkdir -p -m 700 deploy/secrets
	@test -s deploy/secrets/redis_password || { \
	  head -c 32 /dev/urandom | od -A n -t x1 | tr -d ' \n' > deploy/secrets/redis_password; \
	  chmod 444 deploy/secrets/redis_password; echo "==> made deploy/secrets/redis_password"; }

clean: ## Remove .venv and every cache of the tools
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is not. Try: make PYTHON=python3.12 install" >&2; exit 1; }
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no virtual environment: on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }

# A stamp is written only after pip has finished, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "==> installing Sequoia into $(VENV) (the first time fetches torch: some minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	@touch $@
	@echo "==> installed"

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	@echo "==> installing Sequoia and its development tools into $(VENV) (the first time: some minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $(INSTALLED) $@
	@echo "==> installed"
