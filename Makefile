# hoi-distill: every command of the project. `make` or `make help` lists them.
CONFIG ?= pipeline.yaml
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python

# `section.key=value` on make's command line is handed to the stage; NAME=value reaches the pipeline file as ${NAME}.
empty :=
space := $(empty) $(empty)
capitals := A% B% C% D% E% F% G% H% I% J% K% L% M% N% O% P% Q% R% S% T% U% V% W% X% Y% Z%
overrides := $(filter-out $(capitals),$(subst \$(space),<space>,$(MAKEOVERRIDES)))
STAGE_ARGS = --config $(CONFIG) $(foreach given,$(overrides),'$(subst <space>, ,$(given))')

# Cores are often shared: spinning OpenMP threads stall each other.
export OMP_WAIT_POLICY ?= PASSIVE
# An allocator that gives every batch's memory back asks for it again at the next: a third of the time on a CPU.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo teacher-cache train eval test lint format world-weights world-check benchmarks clean

help: ## this list
	@echo "usage: make TARGET [CONFIG=pipeline.yaml] [section.key=value ...]"
	@echo
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python is too old · expected: 3.10 or newer · got: " + sys.version.split()[0] + " · next: make setup PYTHON=python3.12")'
	@echo "making the environment in $(VENV): a minute or a few, and about 6 GB, most of it torch"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(VENV)/.ready ## make the environment in .venv (the other targets do it when needed)

demo: setup ## the whole main job on the embedded world: cache, train, evaluate, print the table
	@$(PY) -m stages.demo $(STAGE_ARGS)

teacher-cache: setup ## stage one: detector and teacher over every image, into HDF5 shards
	@$(PY) -m stages.teacher_cache $(STAGE_ARGS)

train: setup ## stage two: students, from the cache alone
	@$(PY) -m stages.train $(STAGE_ARGS)

eval: setup ## stage three: average precision of students and baselines
	@$(PY) -m stages.evaluate $(STAGE_ARGS)

test: setup ## all tests
	$(PY) -m pytest -n 2 $(ARGS)

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

world-weights: setup ## train the embedded world's CLIP and detector again (CPU, about half an hour each)
	@$(PY) -m stages.world_weights $(ARGS)

world-check: setup ## measure the committed CLIP and detector of the embedded world
	@$(PY) -m stages.world_weights --check

benchmarks: setup ## ratios of speed, measured side by side (a few minutes; benchmarks/README.md)
	@for name in evaluation reader training extraction; do $(PY) -m benchmarks.$$name && echo || exit; done

clean: ## remove outputs (caches, runs, results); the environment stays
	rm -rf outputs
