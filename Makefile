# `make help` lists the targets. Variables: PYTHON, the interpreter for the set-up; ARGS, more arguments for
# the command of `demo` or for pytest.

# Tried by running it: a name on the path may be a shim for a version that is not installed.
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3; do \
	if "$$p" -c '' >/dev/null 2>&1; then echo "$$p"; break; fi; done)
endif
ifeq ($(strip $(PYTHON)),)
PYTHON := python3.11
endif
VENV := .venv/bin/python

# What runs here sees .venv and nothing else.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: demo test setup setup-dev lint clean help
# Checks run one after the other, the cheap ones first; `make --keep-going` runs all of them.
.NOTPARALLEL:
.PHONY: ruff format mypy pytest

demo: setup ## set up, then train and compare the components on the default data
	@$(VENV) ablations/run.py --grid components --equal-cost $(ARGS)

test: ruff format mypy pytest ## set up, then run every check and the tests (not those marked gpu)

lint: ruff format mypy ## set up, then run the checks without the tests

setup: ## make .venv with all that a run needs
	@"$(PYTHON)" tools/setup_env.py

setup-dev:
	@"$(PYTHON)" tools/setup_env.py --dev

ruff: setup-dev
	@echo "test: ruff check" && $(VENV) -m ruff check .

format: setup-dev
	@echo "test: ruff format --check" && $(VENV) -m ruff format --check .

mypy: setup-dev
	@echo "test: mypy" && $(VENV) -m mypy

pytest: setup-dev
	@echo "test: pytest" && $(VENV) -m pytest -m "not gpu" -n 2 --dist worksteal $(ARGS)

clean: ## remove .venv and the caches of tools; results stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1: \2/p' $(firstword $(MAKEFILE_LIST))
