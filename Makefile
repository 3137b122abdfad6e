# Every target sets itself up: a fresh clone needs python3 (3.11 or newer) and a package index, nothing else.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Spinning OpenMP threads make a shared machine several times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME   ?= 0

# Half of the tests each; who is done first takes over from the other.
TWO        := -n 2 --dist worksteal
IDENTITIES := tests/laws tests/denoisers tests/test_saving.py tests/test_saved_memory.py

# Of `make torture`: cases of each script at most, minutes of all together, and a seed; another one gives other cases.
TRIES   ?=
MINUTES ?= 16
SEED    ?= 0

.PHONY: help demo test check test-portable torture torture-short lint format docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## four laws and three score networks on the handwritten digits, and a report
	$(BIN)/molrmog demo --out runs/demo

test: $(READY)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO)

check: $(READY)  ## the suite without its slow tests: the inner loop, about a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) -m "not slow"

test-portable: $(READY)  ## the identities of laws, denoisers and saved models again, as on a processor without AVX
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TWO) $(IDENTITIES)

torture: $(READY)  ## kills, random calls, hostile files and command lines; TRIES=... MINUTES=... SEED=...
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/all.py --minutes $(MINUTES) --seed $(SEED) $(if $(TRIES),--tries $(TRIES))

torture-short: $(READY)  ## the first cases of each: a minute and a half
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/all.py --short

lint: $(READY)  ## ruff, pyright, floors, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(READY)  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the docstrings as plain pages, under build/docs
	mkdir -p build/docs && cd build/docs && ../../$(BIN)/python -m pydoc -w molrmog

bench: $(READY)  ## every benchmark beside its peers
	$(BIN)/molrmog bench

clean:  ## remove what the other targets made
	rm -rf $(VENV) build runs .pytest_cache .ruff_cache .hypothesis
