# hoi-distill: every command of the project. `make` or `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python

# All that stands on make's command line as NAME=value or section.key=value is handed to `hoi VERB`, which knows what
# its verbs take: IMAGES=photos is its --images, NAME=value may also be what the pipeline file calls ${NAME}.
empty :=
space := $(empty) $(empty)
# make lists what was given last first.
reversed = $(if $(1),$(call reversed,$(wordlist 2,999,$(1))) $(firstword $(1)))
given := $(call reversed,$(foreach .word,$(subst \$(space),<space>,$(MAKEOVERRIDES)),$(firstword $(subst =,$(space),$(.word)))))
# A text of make's command line as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
WORDS = $(if $(filter environment,$(origin CONFIG)),--config $(call quoted,$(CONFIG))) \
	$(foreach .name,$(filter-out PYTHON VENV ARGS LATEST,$(given)),$(call quoted,$(.name)=$(value $(.name)))) $(ARGS)
HOI = HOI_CALLED_BY=make $(PY) -m hoi
STAGE = HOI_CALLED_BY=make $(PY) -m stages

# Targets that hand nothing on refuse what they do not know.
plain := help setup test lint format docs house fuzz chaos benchmarks growth clean
ifeq (,$(filter-out $(plain),$(MAKECMDGOALS)))
unknown := $(filter-out PYTHON VENV ARGS LATEST SLOW,$(given))
$(if $(unknown),$(error there is no variable $(firstword $(unknown)) · expected: ARGS, SLOW, LATEST, PYTHON or VENV · next: make help))
endif

# Cores are often shared: spinning OpenMP threads stall each other.
export OMP_WAIT_POLICY ?= PASSIVE
# An allocator that gives every batch's memory back asks for it again at the next: a third of the time on a CPU.
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help setup FORCE demo teacher-cache train eval sweep bench report hicodet vcoco doctor audit score \
	new checkpoint predict app check-page quality \
	cache-plan cache-info cache-verify cache-repair cache-rescore cache-export cache-pull \
	test lint format docs house fuzz chaos benchmarks growth world-weights world-check clean

help: ## this list
	@echo "usage: make TARGET [CONFIG=pipeline.yaml] [section.key=value ...]; after make setup, $(VENV)/bin/hoi does the same"
	@echo
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt $(if $(LATEST),FORCE)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python is too old · expected: 3.10 or newer · got: " + sys.version.split()[0] + " · next: make setup PYTHON=python3.12")'
	@echo "making the environment in $(VENV): a minute or a few, and about 6 GB, most of it torch"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(PY) -m pip install --disable-pip-version-check --editable '.[dev]' \
		$(if $(LATEST),--upgrade --upgrade-strategy eager,--constraint constraints.txt)
	@touch $@
	@echo "the environment is ready; next: make demo"

FORCE:

setup: $(VENV)/.ready ## make the environment in .venv with the versions that were tested (LATEST=1: the newest ones)

demo: setup ## the whole main job on the embedded world: cache, train, evaluate, print the table
	@$(HOI) demo $(WORDS)

teacher-cache: setup ## stage one: detector and teacher over every image, into HDF5 shards
	@$(STAGE).teacher_cache $(WORDS)

train: setup ## stage two: students, from the cache alone
	@$(STAGE).train $(WORDS)

eval: setup ## stage three: average precision of students and baselines
	@$(STAGE).evaluate $(WORDS)

sweep: setup ## grid or list of students x seeds against one cache, to one table (CONFIG=examples/ablation.yaml)
	@$(HOI) sweep $(WORDS)

bench: setup ## the README's rows over two worlds and five seeds, to outputs/bench
	@$(HOI) bench $(WORDS)

report: setup ## one self-contained page of the results: tables, curves, pictures
	@$(HOI) report $(WORDS)

hicodet: setup ## HICO-DET from files on disk to results: doctor, plan, cache, gates, train, eval, audit (DATA=folder)
	@$(HOI) hicodet $(WORDS)

vcoco: setup ## the same for V-COCO (DATA=folder)
	@$(HOI) vcoco $(WORDS)

doctor: setup ## what is missing or wrong in what the pipeline file names, and the line that mends it (ALL=1: every file)
	@$(HOI) doctor $(WORDS)

new: setup ## a pipeline file for a folder of your own (NAME=, IMAGES=, PHRASES=, DETECTOR=, INSTANCES=, CLIP=)
	@$(HOI) new $(WORDS)

checkpoint: setup ## a trained student as one self-contained folder (STUDENT=best SEED=0 OUT=folder ONNX=1)
	@$(HOI) checkpoint $(WORDS)

predict: setup ## images, folders or videos to predictions and pictures (IMAGES=path OUT=folder THRESHOLD=0.1 TOP=10)
	@$(HOI) predict $(WORDS)

quality: setup ## what can be said of students without labels, and its limits (SAMPLE=24 images mirrored)
	@$(HOI) quality $(WORDS)

app: setup ## a page on this machine: drop an image, see who does what (PORT=8008, CHECKPOINT=folder or CONFIG=)
	@$(HOI) app $(WORDS)

check-page: setup ## mark 50 predictions right or wrong: precision and AP with intervals (PREDICTIONS=file IMAGES=folder)
	@$(HOI) check-page --serve $(WORDS)

audit: setup ## which labels, splits and training data touched the results
	@$(HOI) audit $(WORDS)

score: setup ## average precision of anybody's predictions (DATASET=hicodet ANNOTATIONS=path PREDICTIONS=file JSON=file)
	@$(HOI) score $(WORDS)

cache-plan: setup ## what a build would take: shards, bytes, minutes (SAMPLE=8 times some images)
	@$(HOI) cache plan $(WORDS)

cache-info: setup ## what the cache is
	@$(HOI) cache info $(WORDS)

cache-verify: setup ## sizes, hashes and tables of every file (RECOMPUTE=8 runs the models on 8 images again, SEED=0)
	@$(HOI) cache verify $(WORDS)

cache-repair: setup ## make missing, bad and failed parts again
	@$(HOI) cache repair $(WORDS)

cache-rescore: setup ## other prompts or vocabulary from the cached embeddings (TO=folder)
	@$(HOI) cache rescore $(WORDS)

cache-export: setup ## one image's records as JSON (IMAGE=id, TOP=5)
	@$(HOI) cache export $(WORDS)

cache-pull: setup ## a finished cache from any location, verified (URL=..., TO=folder)
	@$(HOI) cache pull $(WORDS)

test: setup ## the tests, but for those that take long (SLOW=1: all of them)
	$(PY) -m pytest -n 2 $(if $(SLOW),--slow) $(ARGS)

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup ## the documentation as a site in site/, links checked; no network is needed
	$(PY) -m mkdocs build --strict --quiet $(ARGS)

house: setup ## size, prose, import cycles, and what an addition touches
	@$(PY) -m benchmarks.house $(ARGS)

fuzz: setup ## spoil every file that is read, node by node, and count what happens (ARGS="--cases 2000 --only cache")
	@OMP_NUM_THREADS=1 $(PY) -m tests.fuzz $(ARGS)

chaos: setup ## kill, break and disturb every verb that writes, counted (about ten minutes; some cases need root)
	@OMP_NUM_THREADS=1 $(PY) -m tests.chaos $(ARGS)

world-weights: setup ## train the embedded world's CLIP, detector and captioner again (CPU, about half an hour each)
	@$(HOI) world train $(WORDS)

world-check: setup ## measure the committed CLIP, detector and captioner of the embedded world
	@$(HOI) world train --check $(WORDS)

benchmarks: setup ## ratios of speed, measured side by side (a quarter of an hour; benchmarks/README.md)
	@for name in evaluation reader training extraction workers memory latency candidates hoiclip; do $(PY) -m benchmarks.$$name && echo || exit; done

growth: setup ## the cache at scale, small sizes (ARGS=--full for HICO-DET's size and ten million images)
	@$(PY) -m benchmarks.growth $(ARGS)

clean: ## remove caches, runs and results; the environment stays
	rm -rf outputs site
	find cache -mindepth 1 -maxdepth 1 ! -name FORMAT.md ! -name SCALE.md -exec rm -rf {} +
