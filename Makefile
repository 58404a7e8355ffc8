# make demo    set everything up and run the main job
# make test    set everything up and run the tests
# make bench   set everything up and show the proof of speed that this machine can give
# make gpu     the tests on a GPU, then the benchmark, with what is installed; RESULTS is the folder it writes
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
DEMO_ARGS ?=
TEST_ARGS ?=

BENCH_ARGS ?=
RESULTS ?= bench/results/gpu
SPEED_BUDGET ?= 400
MODELS_BUDGET ?= 240
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)

.PHONY: demo test bench gpu clean

demo: $(INSTALLED)
	$(RUN) -m bench.demo $(DEMO_ARGS)

# two processes: the interpreter is not thread-safe, and a GPU is shared
test: $(INSTALLED)
	$(RUN) -m pytest -n 2 --timeout 300 $(TEST_ARGS)

bench: $(INSTALLED)
	$(RUN) -m bench $(BENCH_ARGS)

# uninstalled and offline, with the machine's own torch and triton; results are kept where tests fail
gpu:
	status=0; $(PYTHON) -m pytest -q tests || status=$$?; \
	for part in "speed --budget $(SPEED_BUDGET)" "models --budget $(MODELS_BUDGET)"; do \
		$(PYTHON) -m bench $$part --out $(RESULTS) $(addprefix --commit ,$(COMMIT)) || status=$$?; \
	done; exit $$status

# Debian's python3 may come without the part that puts pip into a new environment, but with a pip of its own
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV) || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
