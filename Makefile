# Two commands for a fresh clone: `make demo` and `make test`. Both make .venv once and use it again.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TUNE := $(BIN)/fitcoach-tune

# The XLA tests need torch_xla, which there is for Linux on x86-64 alone; elsewhere they are skipped.
comma := ,
EXTRAS := offline,dev$(if $(filter Linux/x86_64,$(shell uname -s)/$(shell uname -m)),$(comma)xla)

.PHONY: demo test lint docs clean

demo: $(INSTALLED)
	$(TUNE) prepare --config offline
	$(TUNE) train --config offline --force
	$(TUNE) eval --config offline --adapter output/fitness-offline
	@echo 'You ask: "How many steps?"  The tuned model calls:'
	@$(TUNE) infer "How many steps?" --adapter output/fitness-offline --quiet

# Several tests at a time; `make test WORKERS=0` for one after the other. The largest need 5 GB each.
WORKERS ?= 2
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --durations 40 $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# docs/cli.md is made from --help; a test holds the two together.
docs: $(INSTALLED)
	$(BIN)/python docs/make_cli.py

# One test compares with the Berkeley leaderboard's checker and is skipped without it. --no-deps: the package pins dozens
# of API clients that the checker does not need.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	-$(BIN)/python -m pip install --disable-pip-version-check --no-deps bfcl-eval==2026.3.23
	touch $@

clean:
	rm -rf $(VENV) dist build output
