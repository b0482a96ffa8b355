# Two commands set everything up: `make demo` and `make test`. PYTHON=/path/to/python3.12 chooses the interpreter.
SHELL := /bin/sh
BIN := .venv/bin

.PHONY: setup demo train-demo up down test test-integration test-long check bench soak clean

setup:
	@scripts/setup

demo: setup
	@$(BIN)/python -m embedded.demo

train-demo:
	@scripts/setup training
	@$(BIN)/python -m embedded.train_demo

up: setup
	@$(BIN)/twin up --detach

down:
	@if [ -x $(BIN)/twin ]; then $(BIN)/twin down; fi

# Compiled once, whatever the environment says of bytecode, and not by each worker anew.
test: export PYTHONDONTWRITEBYTECODE =
test: setup-dev
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-integration: setup-dev
	$(BIN)/pytest -m "integration and not long" -n 2 --dist loadfile --durations 15

test-long: setup-dev
	$(BIN)/pytest -m "integration and long"

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-dev
	$(BIN)/pytest -m benchmark -s -q

SEED ?= 7
OPS ?= 100000
OPTIONS ?=

# OPTIONS="--rounds 0" leaves out the sample with real processes; "--over-kafka" runs it over a Kafka and a Connect.
soak: setup-dev
	PYTHONPATH=. $(BIN)/python tests/oracle/soak.py --seed $(SEED) --operations $(OPS) $(OPTIONS)

.PHONY: setup-dev
setup-dev:
	@scripts/setup dev

clean: down
	rm -rf .venv .twin
