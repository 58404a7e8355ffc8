# make demo    set everything up and run the main job
# make test    set everything up and run the tests
# make bench   set everything up and show the proof of speed that this machine can give
# make study   set everything up and run the experiments on normalisation and regularisation
# make gpu     on a machine with a GPU: the tests, then the benchmark into the folder RESULTS; in two
#              halves with GPU_PARTS=tests and GPU_PARTS="speed models"
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
DEMO_ARGS ?=
TEST_ARGS ?=

BENCH_ARGS ?=
STUDY_ARGS ?=
GPU_PARTS ?= tests speed models
RESULTS ?= bench/results/gpu
SPEED_BUDGET ?= 330
MODELS_BUDGET ?= 200
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
GPU_OPTIONS = --out $(RESULTS) $(addprefix --commit ,$(COMMIT))

.PHONY: demo test bench study gpu gpu-tests gpu-speed gpu-models clean

demo: $(INSTALLED)
	$(RUN) -m bench.demo $(DEMO_ARGS)

# two processes: the interpreter is not thread-safe, and a GPU is shared
test: $(INSTALLED)
	$(RUN) -m pytest -n 2 --timeout 300 $(TEST_ARGS)

bench: $(INSTALLED)
	$(RUN) -m bench $(BENCH_ARGS)

study: $(INSTALLED)
	$(RUN) -m bench.study $(STUDY_ARGS)

# uninstalled and offline, with the machine's own torch and triton; what follows a failure runs all the same
gpu:
	$(MAKE) --keep-going $(addprefix gpu-,$(GPU_PARTS))

gpu-tests:
	$(PYTHON) -m pytest -q tests

gpu-speed:
	$(PYTHON) -m bench speed --budget $(SPEED_BUDGET) $(GPU_OPTIONS)

gpu-models:
	$(PYTHON) -m bench models --budget $(MODELS_BUDGET) $(GPU_OPTIONS)

# Debian's python3 may come without the part that puts pip into a new environment, but with a pip of its own
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV) || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
