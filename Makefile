# make study [ARGS="--minutes 10 my_texts/"]   the main job
# make test                                    everything that CI checks
# make lint, make clean
#
# The first call makes .venv and installs what constraints.txt pins; later ones install nothing. Another Python:
# make PYTHON=/path/to/python3.12 study

RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c '$(RECENT)' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: study test lint clean
.DELETE_ON_ERROR:

study: $(INSTALLED)
	@$(BIN)/verim study $(ARGS)

# Two at a time, each with one thread that does not wait in a loop: tests that want more threads ask for them.
test: lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone, by its exact version: where a CPU build lies at hand, pip takes it.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Verim needs Python 3.11 or newer, none was found:" \
		"install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(RECENT)' || { echo "Verim needs Python 3.11 or newer, $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1): name another, make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear .venv || { echo "$(PYTHON) could not make .venv:" \
		"install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing into .venv, this once ..."
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) -c constraints.txt hatchling editables
	@$(PIP) -c constraints.txt --no-build-isolation -e ".[test]"
	@touch $@
