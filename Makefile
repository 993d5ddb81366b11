# `make` lists the targets. Each sets up what it needs: the first one run makes the virtual
# environment, which downloads about 3 GB; later ones find it there and ask no package index.

PYTHON ?= python3
VENV ?= .venv
# More arguments for pip, for example another index with a torch for your CUDA
PIP_ARGS ?=
TEST_ARGS ?= -q --durations=15 -n 2 --dist loadfile
# More arguments for tools/study.py, as --jobs 2, --gpus 0,1, --kept docs/study or --dry-run
STUDY_ARGS ?=
# In a process of their own: after hundreds of other tests, a process that has these runtimes
# loaded died without a word. No test of TEST_ARGS (pytest's status 5) is no failure there.
EXPORT_TESTS := tests/tools/test_export_model.py

RUN := $(VENV)/bin/python
# Written last, so it exists only where a whole set-up is
READY := $(VENV)/.ready
# There from the first moment of a new environment until it is ready
UNFINISHED := $(VENV)/.unfinished
PIP_INSTALL := $(RUN) -m pip install --disable-pip-version-check -qq $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help venv test demo demo-clip bench study docs lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/make \1 \t\2/' | expand -t 20

venv: $(READY) ## make the virtual environment with everything in it, versions of constraints.txt
ifneq ($(origin PYTHON),file)
	@want=$$($(PYTHON) -V) && have=$$($(RUN) -V) && { [ "$$want" = "$$have" ] || \
	  { echo "make: $(VENV) has $$have, and PYTHON=$(PYTHON) is $$want: run make clean first, or set VENV to another folder" >&2; exit 1; }; }
endif

test: venv ## run every test (TEST_ARGS for pytest's arguments)
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(TEST_ARGS) --ignore=$(EXPORT_TESTS) tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(TEST_ARGS) -n 0 $(EXPORT_TESTS) || [ $$? -eq 5 ]

demo: venv ## make Mini VID, train CLAB on it, evaluate, draw detections on a video
	$(RUN) tools/make_demo.py

demo-clip: venv ## detect in a real clip
	$(RUN) tools/make_demo.py --clip

bench: venv ## measure speed and memory
	$(RUN) tools/benchmark.py --runtimes

study: venv ## run every study of Mini VID and of a real street: many hours; goes on if stopped
	$(RUN) datasets/make_mini_vid.py --output datasets/mini_vid
	$(RUN) datasets/make_mini_vid.py --seed 7 --output datasets/mini_vid_seed_7
	$(RUN) datasets/make_mini_vid.py --seed 8 --output datasets/mini_vid_seed_8
	@[ -e datasets/real_clips/bikes.mp4 ] || ln -s "$$($(RUN) -c \
	  'from clab_d2.sample_clips import find_clip; print(find_clip("bikes.mp4"))')" datasets/real_clips/bikes.mp4
	$(RUN) tools/study.py --study studies/mini_vid_*.yaml studies/own_videos.yaml \
	  --output output/study $(STUDY_ARGS)

docs: venv ## build the documentation site into output/site
	@$(PIP_INSTALL) -c constraints.txt -r docs/requirements.txt
	$(RUN) -m sphinx -W --keep-going -q -c docs/site . output/site
	@echo "built: output/site/docs/index.html"

lint: venv ## check the style
	$(RUN) -m ruff check .

clean: ## remove the virtual environment and caches; output/ and made datasets stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find clab_d2 clab_d2_cli datasets tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The Makefile itself is one of the files that the environment follows from. A new environment
# whose making was broken off is made anew; one that is ready is brought up to date in place.
$(READY): setup.py constraints.txt tools/install_detectron2.py Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "make: $(PYTHON) is missing or older than 3.10: install a newer Python, or run make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: $(PYTHON) can't make virtual environments: install its venv module (Debian, Ubuntu: the package python3-venv)" >&2; exit 1; }
	@if [ -e $(UNFINISHED) ]; then echo "making $(VENV) anew: the last set-up was broken off"; \
	  find $(VENV) -mindepth 1 -maxdepth 1 ! -name $(notdir $(UNFINISHED)) -exec rm -rf {} +; fi
	@if [ -e $(UNFINISHED) ] || [ ! -e $(VENV) ]; then mkdir -p $(VENV) && touch $(UNFINISHED) && \
	  echo "making $(VENV) with $$($(PYTHON) -V)" && $(PYTHON) -m venv $(VENV); fi
	@echo "installing the versions of constraints.txt (the first time: some minutes)"
	@$(PIP_INSTALL) $$(grep -E '^(setuptools|wheel)==' constraints.txt)
	@$(PIP_INSTALL) --no-build-isolation -r constraints.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@$(RUN) tools/install_detectron2.py
	@rm -f $(UNFINISHED)
	@touch $@
