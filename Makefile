# Targets: `make` lists them. PYTHON=python3.12 picks the Python that .venv is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO_FLAGS ?=
TEST_PROCESSES ?= 2
BENCHMARKS ?= prediction_files expansion fusion metric tuning decoding input_pipeline

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lock keras-retinanet demo clean-demo test test-all bench results lint

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-16s %s\n", $$1, $$2 }'

setup: $(VENV)/installed  ## make .venv with the versions of requirements.lock

$(VENV)/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13: run make PYTHON=python3.12, for example" >&2; exit 2; }
	@echo "installing requirements.lock in $(VENV) (about 3 GB, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.lock
	@touch $@

lock:  ## write requirements.lock anew: the newest versions that requirements.txt allows
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(PYTHON) -m venv "$$folder" && "$$folder/bin/pip" install --quiet uv && \
		"$$folder/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
			--no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock requirements.txt

# It is built from source. --no-deps, because it asks for opencv-python, which needs a display's libraries.
keras-retinanet: $(VENV)/installed  ## build keras-retinanet, which some tests compare with; nothing else needs it
	@$(PIP) install --no-deps keras-resnet==0.2.0 keras-retinanet==1.0.0 || { echo \
		"error: keras-retinanet cannot be built: it needs a C compiler and Python.h (gcc, python3-dev)" >&2; exit 1; }

demo: $(VENV)/installed  ## the whole pipeline on generated data, in demo_data (DEMO_FLAGS="--seed 1" changes flags)
	@$(BIN)/python -m demo.run_demo $(DEMO_FLAGS)

clean-demo:  ## remove demo_data
	rm -rf demo_data

# Files of tests in two processes: each starts TensorFlow, and needs up to 4 GB.
test: $(VENV)/installed  ## the tests
	@$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile

test-all: $(VENV)/installed  ## the tests, with the slow ones
	@$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile -m ""

bench: $(VENV)/installed  ## the benchmarks, one after the other
	@set -e; for name in $(BENCHMARKS); do \
		echo "$$ python benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; \
	done

results: $(VENV)/installed  ## the README's tables; VOC=folder and OID=folder add those of data sets
	@$(BIN)/python benchmarks/results.py --demo $(if $(VOC),--voc $(VOC)) $(if $(OID),--oid $(OID))

lint: $(VENV)/installed  ## check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
