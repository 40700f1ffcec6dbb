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
OVERRIDES = $(foreach given,$(overrides),'$(subst <space>, ,$(given))')
# A target with a file of its own takes it where no CONFIG is given.
config_or = $(if $(filter file,$(origin CONFIG)),$(1),$(CONFIG))
# A text of make's command line as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
STAGE_ARGS = --config $(CONFIG) $(OVERRIDES)

# Cores are often shared: spinning OpenMP threads stall each other.
export OMP_WAIT_POLICY ?= PASSIVE
# An allocator that gives every batch's memory back asks for it again at the next: a third of the time on a CPU.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo teacher-cache train eval sweep bench report hicodet vcoco doctor audit score \
	new checkpoint predict app check-page quality \
	cache-plan cache-info cache-verify cache-repair cache-rescore cache-export cache-pull \
	test lint format chaos benchmarks growth world-weights world-check clean

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
	@$(PY) -m hoi demo $(STAGE_ARGS)

teacher-cache: setup ## stage one: detector and teacher over every image, into HDF5 shards
	@$(PY) -m hoi teacher-cache $(STAGE_ARGS)

train: setup ## stage two: students, from the cache alone
	@$(PY) -m hoi train $(STAGE_ARGS)

eval: setup ## stage three: average precision of students and baselines
	@$(PY) -m hoi eval $(STAGE_ARGS)

sweep: setup ## grid or list of students x seeds against one cache, to one table (CONFIG=examples/ablation.yaml)
	@$(PY) -m hoi sweep --config $(call config_or,examples/ablation.yaml) $(OVERRIDES)

bench: setup ## the README's rows over two worlds and five seeds, to outputs/bench
	@$(PY) -m hoi bench --config $(call config_or,examples/bench.yaml) $(OVERRIDES)

report: setup ## one self-contained page of the results: tables, curves, pictures
	@$(PY) -m hoi report $(STAGE_ARGS) $(ARGS)

hicodet: setup ## HICO-DET from files on disk to results: doctor, plan, cache, gates, train, eval, audit (DATA=folder)
	@$(PY) -m hoi hicodet --config $(call config_or,examples/hicodet.yaml) $(OVERRIDES) $(ARGS)

vcoco: setup ## the same for V-COCO (DATA=folder)
	@$(PY) -m hoi hicodet --config $(call config_or,examples/vcoco.yaml) $(OVERRIDES) $(ARGS)

doctor: setup ## what is missing or wrong in what the pipeline file names, and the line that mends it (ALL=1: every file)
	@$(PY) -m hoi doctor $(STAGE_ARGS) $(if $(ALL),--all) $(if $(JSON),--json $(JSON))

new: setup ## a pipeline file for a folder of your own (NAME=, IMAGES=, PHRASES=, DETECTOR=, INSTANCES=, CLIP=)
	@$(PY) -m hoi new $(foreach each,NAME IMAGES PHRASES DETECTOR INSTANCES CLIP,$(if $($(each)),--$(shell echo $(each) | tr A-Z a-z) $(call quoted,$($(each))))) $(ARGS)

checkpoint: setup ## a trained student as one self-contained folder (STUDENT=best SEED=0 OUT=folder ONNX=1)
	@$(PY) -m hoi checkpoint $(STAGE_ARGS) $(if $(STUDENT),--student $(STUDENT)) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out '$(OUT)') $(if $(ONNX),--onnx)

predict: setup ## images, folders or videos to predictions and pictures (IMAGES=path OUT=folder CHECKPOINT=folder)
	@$(PY) -m hoi predict $(STAGE_ARGS) $(if $(IMAGES),--images $(call quoted,$(IMAGES))) --out $(call quoted,$(or $(OUT),outputs/predictions)) $(if $(CHECKPOINT),--checkpoint $(call quoted,$(CHECKPOINT))) $(if $(STUDENT),--student $(STUDENT)) $(ARGS)

quality: setup ## what can be said of students without labels, and its limits (SAMPLE=24 images looked at again)
	@$(PY) -m hoi quality $(if $(SAMPLE),--sample $(SAMPLE)) $(STAGE_ARGS) $(ARGS)

app: setup ## a page on this machine: drop an image, see who does what (CHECKPOINT=folder, or CONFIG= of a trained one)
	@$(PY) -m hoi app $(if $(CHECKPOINT),--checkpoint $(call quoted,$(CHECKPOINT)) $(OVERRIDES),$(STAGE_ARGS) $(if $(STUDENT),--student $(STUDENT))) $(ARGS)

check-page: setup ## mark 50 predictions right or wrong: precision and AP with intervals (PREDICTIONS=file IMAGES=folder)
	@$(PY) -m hoi check-page --serve $(if $(PREDICTIONS),--predictions $(call quoted,$(PREDICTIONS))) $(if $(IMAGES),--images $(call quoted,$(IMAGES)),--config $(CONFIG)) $(if $(OUT),--out $(call quoted,$(OUT))) $(ARGS)

audit: setup ## which labels, splits and training data touched the results
	@$(PY) -m hoi audit $(STAGE_ARGS) $(ARGS)

score: setup ## average precision of anybody's predictions: make score ARGS='--dataset hicodet --annotations ...'
	@$(PY) -m hoi score $(ARGS)

cache-plan: setup ## what a build would take: shards, bytes, minutes (SAMPLE=8 times some images)
	@$(PY) -m hoi teacher-cache plan $(if $(SAMPLE),--sample $(SAMPLE)) $(STAGE_ARGS)

cache-info: setup ## what the cache is
	@$(PY) -m hoi teacher-cache info $(STAGE_ARGS)

cache-verify: setup ## sizes, hashes and tables of every file (RECOMPUTE=8 runs the models on 8 images again, SEED=0)
	@$(PY) -m hoi teacher-cache verify $(if $(RECOMPUTE),--recompute $(RECOMPUTE)) $(if $(SEED),--seed $(SEED)) $(STAGE_ARGS)

cache-repair: setup ## make missing, bad and failed parts again
	@$(PY) -m hoi teacher-cache repair $(STAGE_ARGS)

cache-rescore: setup ## other prompts or vocabulary from the cached embeddings (TO=folder)
	@$(PY) -m hoi teacher-cache rescore $(if $(TO),--to '$(TO)') $(STAGE_ARGS)

cache-export: setup ## one image's records as JSON (IMAGE=id, TOP=5)
	@$(PY) -m hoi teacher-cache export $(if $(IMAGE),'$(IMAGE)') $(if $(TOP),--top $(TOP)) $(STAGE_ARGS)

cache-pull: setup ## a finished cache from any location, verified (URL=..., TO=folder)
	@$(PY) -m hoi teacher-cache pull $(if $(URL),'$(URL)') $(if $(TO),--to '$(TO)') $(STAGE_ARGS)

test: setup ## all tests
	$(PY) -m pytest -n 2 $(ARGS)

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

chaos: setup ## kill, break and disturb stage one, counted (about five minutes; some cases need root)
	@OMP_NUM_THREADS=1 $(PY) -m tests.chaos $(ARGS)

world-weights: setup ## train the embedded world's CLIP, detector and captioner again (CPU, about half an hour each)
	@$(PY) -m hoi world $(ARGS)

world-check: setup ## measure the committed CLIP, detector and captioner of the embedded world
	@$(PY) -m hoi world --check

benchmarks: setup ## ratios of speed, measured side by side (a quarter of an hour; benchmarks/README.md)
	@for name in evaluation reader training extraction workers memory latency candidates hoiclip; do $(PY) -m benchmarks.$$name && echo || exit; done

growth: setup ## the cache at scale, small sizes (ARGS=--full for HICO-DET's size and ten million images)
	@$(PY) -m benchmarks.growth $(ARGS)

clean: ## remove outputs (caches, runs, results); the environment stays
	rm -rf outputs
