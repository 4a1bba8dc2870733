.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# The port `make run` serves on, and the interpreter to build .venv with (default: the newest).
export PORT ?= 8080
export PYTHON ?=

# How many times the work of `make test` the load tests do in `make soak`.
SOAK_FACTOR ?= 100

# What `make bench` measures and how long: see docs/performance.md.
BENCH ?=

bin := .venv/bin
pytest := $(bin)/python -m pytest

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Serve on http://127.0.0.1:8080 (PORT=) with a SoftHSM token; all state in ./var
	@scripts/require.sh venv softhsm flock curl
	@scripts/venv.sh
	@exec scripts/run.sh

.PHONY: test
test: setup check ## Run everything: linters, types, import contracts and the tests
	$(pytest) --ignore=tests/interop -n 2 --dist loadfile

.PHONY: lint
lint: venv check ## Run the linters, types and import contracts only

.PHONY: soak
soak: setup ## Run load tests and fuzzing SOAK_FACTOR (100) times as long
	SOAK_FACTOR=$(SOAK_FACTOR) $(pytest) tests/faults tests/contract tests/e2e/test_fuzz.py

.PHONY: interop
interop: setup ## Verify our tokens with node's jose
	@scripts/interop.sh

.PHONY: rotation-proof
rotation-proof: setup ## Rotate, compromise and SIGKILL before clients with caches; 6 minutes, proof/out
	@scripts/require.sh node
	@cd tests/interop && npm ci --ignore-scripts --no-audit --no-fund
	$(bin)/python -m proof.rotation

.PHONY: failover-proof
failover-proof: setup ## Kill, flap and migrate backends before clients with caches; 5 minutes, proof/out
	@scripts/require.sh node
	@cd tests/interop && npm ci --ignore-scripts --no-audit --no-fund
	$(bin)/python -m proof.failover

.PHONY: bench
bench: setup ## Measure beside OpenBao, bare services and raw C; an hour (BENCH=options), bench/out
	@scripts/require.sh node wrk gcc
	@$(bin)/python -m bench $(BENCH)

.PHONY: lock
lock: ## Regenerate the lock files from pyproject.toml (UPGRADE=1: newest versions)
	@scripts/lock.sh

.PHONY: clean
clean: ## Remove ./var: the demo's token, keys and database
	rm -rf var

.PHONY: distclean
distclean: clean ## Remove .venv and all caches too
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	rm -rf tests/interop/node_modules proof/out bench/out bench/.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: setup
setup:
	@scripts/require.sh venv softhsm flock curl p11-kit postgresql nginx
	@scripts/venv.sh

.PHONY: venv
venv:
	@scripts/require.sh venv
	@scripts/venv.sh

.PHONY: check
check:
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports
