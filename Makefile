# timm-wsms: each target sets up .venv by itself, once; `make` alone lists them.
#
#   make train ARGS="--epochs 3 --seed 1"            settings for the training script
#   make train RECIPE=recipes/cifar10_resnet110.yaml another recipe
#   make train LAUNCH="accelerate launch"            your own `accelerate config`
#   make demo PHOTOGRAPHS=my/flowers                 with photographs of flowers of your own
#   make demo PHOTOGRAPHS=my/images PAIR=imagenette  the same with networks that were trained on Imagenette

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

ARGS ?=
TEST_PROCESSES ?= 2
# A file stays in one process, whose fixtures its tests share; tests/conftest.py starts the longest files first.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
ORDINARY := not sweep and not browser and not gpu and not clients
RECIPE ?= recipes/quickstart.yaml
# A run has a folder of its own: nothing is overwritten, and `make train OUTPUT=outputs/… ARGS="--resume auto"` goes on
# with a run that was interrupted.
OUTPUT ?= outputs/$(basename $(notdir $(RECIPE)))-$(shell date +%Y%m%d-%H%M%S)
# All spelled out, so that neither `accelerate config` nor a warning comes first. Threads: accelerate would allow only one.
LAUNCH ?= $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $$($(BIN)/python -c "import torch; print(torch.get_num_threads())")

.PHONY: help install train test test-slow test-all durations test-gpu test-clients sweep demo demo-test check format
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

install: $(INSTALLED)  ## set up .venv with the package and its tools

train: $(INSTALLED)  ## train the quick start on the embedded digits: the recommended form beside the plain network
	$(LAUNCH) train_accelerate.py --recipe $(RECIPE) --output $(OUTPUT) $(ARGS)

test: $(INSTALLED)  ## run the quick tests: a few minutes
	$(PYTEST) -m "not slow and $(ORDINARY)" $(ARGS)

test-slow: $(INSTALLED)  ## run the slow ones: launchers, faults, exports, every family of timm, benchmarks
	$(PYTEST) -m "slow and $(ORDINARY)" $(ARGS)

test-all: test test-slow  ## run the quick tests, then the slow ones

durations: $(INSTALLED)  ## measure how long each test file takes, for the order in which they run: tests/durations.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(ORDINARY)" --measure-durations $(ARGS)

test-gpu: $(INSTALLED)  ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

test-clients: $(VENV)/.clients  ## try other packages on the networks: benchmarks/results/clients.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.clients $(ARGS)

sweep: $(INSTALLED)  ## run the long tests over all of timm's backbones
	$(BIN)/python -m pytest -m sweep $(ARGS)

ifdef PHOTOGRAPHS
PAIR ?= flowers
MODELS := local-dir:hub/models
ifeq ($(PAIR),flowers)
BACKBONE := tf_efficientnet_lite0
else ifeq ($(PAIR),imagenette)
BACKBONE := resnet10t
else
$(error PAIR is $(PAIR); give flowers or imagenette)
endif
PICTURES := outputs/demo-examples-$(notdir $(PHOTOGRAPHS:/=))
demo: $(VENV)/.demo $(INSTALLED)
	test -d "$(PICTURES)" || $(BIN)/python hub/space/make_examples.py "$(PHOTOGRAPHS)" --output "$(PICTURES)"
	WSMS_MODEL=$(MODELS)/wsmean_$(BACKBONE)_$(PAIR) PLAIN_MODEL=$(MODELS)/$(BACKBONE)_$(PAIR) \
		EXAMPLES="$(PICTURES)" $(BIN)/python hub/space/app.py
else
ifdef PAIR
$(error PAIR=$(PAIR) needs PHOTOGRAPHS=FOLDER)
endif
demo: $(VENV)/.demo  ## see it: one picture at every size, in the browser
	$(BIN)/python hub/space/app.py
endif

demo-test: $(VENV)/.demo-test  ## drive the demo in headless Chromium
	$(BIN)/python -m pytest -m browser tests/space/test_browser.py $(ARGS)

check: $(INSTALLED)  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## put the code into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/pip:
	@echo "Setting up $(VENV): once, PyTorch is a download of some GB."
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

$(VENV)/.demo: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[demo]"
	@touch $@

$(VENV)/.clients: pyproject.toml | $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[clients]"
	@touch $@

$(VENV)/.demo-test: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[demo-test]"
	@type chromium chromedriver >/dev/null || { apt-get update && apt-get install -y chromium chromium-driver; }
	@touch $@
