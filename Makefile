# cgxffcv: `make train` and `make test` do all of their set-up on a fresh Debian or Ubuntu.

VENV := .venv
RUN := $(VENV)/bin/python
RANKS ?= auto
TIER ?= not long and not torch
# Test workers: one per core, up to a limit; WORKERS=0 runs the tests one after the other.
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help build train test test-short test-torch lint format site doctor clean

help:
	@echo "make train        set up, then the main job: write .beton files, train under mpirun"
	@echo "                  (RANKS=N: default one per GPU, or two on a CPU; TRAIN='--training.seed=1 ...')"
	@echo "make test         set up, then the tests (make test-short: a few minutes)"
	@echo "make test-torch   set up, also PyTorch (5 GB), then the tests that need it"
	@echo "make build        set up only: system packages, .venv, the package in it"
	@echo "make site         the documentation as pages to browse: build/site/index.html"
	@echo "make doctor       what this machine has and what is missing"
	@echo "make lint format  ruff and clang-format: check, apply"
	@echo "make clean        remove build results (.venv and data stay)"

build:
	@bash tools/setup.sh

train: build
	$(RUN) write_datasets.py --config-file default_config.yaml
	$(RUN) tools/train_here.py $(RANKS) $(TRAIN)

test: build
	@bash tools/setup.sh test
	$(RUN) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup --no-loadscope-reorder -m "$(TIER)"

test-short: TIER := not medium and not long and not torch
test-short: test

test-torch: build
	@bash tools/setup.sh test
	@bash tools/setup.sh torch
	$(RUN) -m pytest tests/torch

lint: build
	@bash tools/setup.sh test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.[ch]' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.[ch]' 'tests/*.cu' 'tests/*.cc')

format: build
	@bash tools/setup.sh test
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files 'csrc/*.[ch]' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.[ch]' 'tests/*.cu' 'tests/*.cc')

site: build
	@bash tools/setup.sh site
	$(RUN) -m sphinx -W --keep-going -n -q -c docs/site -d build/doctrees . build/site
	@echo "build/site/index.html"

doctor: build
	$(RUN) -m cgxffcv doctor

clean:
	rm -rf build dist *.egg-info _cgxffcv*.so $(VENV)/.installed
