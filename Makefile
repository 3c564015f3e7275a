# make demo   install, then run the embedded default end to end (runs/demo)
# make test   install, lint, run the tests
# make test-live  minutes of load on a running service, which make test leaves out
# make lint   the same checks that pre-commit runs
# make serve  answer over HTTP with the model of MODEL (default: the demo's)

PYTHON ?= python3
MODEL ?= runs/demo/model
BIN := .venv/bin
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH ?= serve.front:layers
# Serve's controller looks ten times a second by default, for a twentieth of a small machine's core.
export RAY_SERVE_CONTROL_LOOP_INTERVAL_S ?= 0.5

.PHONY: demo test test-live lint serve install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/python pipelines/quickstart.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest

test-live: install
	DEVIL_LIVE_TESTS=1 $(BIN)/python -m pytest tests/serve -m live

serve: install
	$(BIN)/serve run serve.app:app model=$(MODEL) log_format=text

clean:
	rm -rf runs .pytest_cache .ruff_cache
