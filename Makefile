# The two commands: `make demo` and `make test`. Each makes its own environment.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint env clean

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.complete: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

env: $(VENV)/.complete

## demo: set everything up, start the platform, put an application on it and show that it answers
demo: $(VENV)/.runtime
	$(BIN)/sampan demo $(DEMO_FLAGS)

## test: set everything up and run every test
test: $(VENV)/.complete
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(TEST_FLAGS)

## lint: style, types and import rules
lint: $(VENV)/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
