# Targets: `make` lists them. PYTHON=python3.12 picks the Python that .venv is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
KERAS_RETINANET_LOG := $(VENV)/keras-retinanet.log
DEMO_FLAGS ?=
TEST_PROCESSES ?= 2
BENCHMARKS ?= prediction_files expansion fusion metric tuning decoding input_pipeline

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup keras-retinanet demo clean-demo test test-all bench results lint

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-16s %s\n", $$1, $$2 }'

setup: $(VENV)/installed  ## make .venv and install requirements.txt, then keras-retinanet if it builds

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13: run make PYTHON=python3.12, for example" >&2; exit 2; }
	@echo "installing requirements.txt in $(VENV) (about 3 GB, some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.txt
	@$(MAKE) --no-print-directory install-keras-retinanet
	@touch $@

keras-retinanet: $(VENV)/installed  ## try again to install keras-retinanet, which nothing here needs
	@$(MAKE) --no-print-directory install-keras-retinanet

# It is built from source. --no-deps, because it asks for opencv-python, which needs a display's libraries.
.PHONY: install-keras-retinanet
install-keras-retinanet:
	@if $(PIP) install --no-deps keras-resnet keras-retinanet > $(KERAS_RETINANET_LOG) 2>&1; then \
		echo "keras-retinanet is installed"; \
	else \
		include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
		if ! command -v "$${CC:-cc}" > /dev/null; then missing="a C compiler is missing (install gcc)"; \
		elif [ ! -e "$$include/Python.h" ]; then missing="Python.h is missing (install python3-dev)"; \
		elif grep -qE "No matching distribution|ConnectionError|Retrying" $(KERAS_RETINANET_LOG); then \
			missing="the package index does not have it, or Cython and NumPy to build it"; \
		else missing="see $(KERAS_RETINANET_LOG)"; fi; \
		echo "keras-retinanet is not installed: $$missing; nothing here needs it"; \
	fi

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
