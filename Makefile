# make demo    set everything up and run the main job
# make test    set everything up and run the tests
# make bench   set everything up and show the proof of speed that this machine can give
# make study   set everything up and run the experiments on normalisation and regularisation
# make gpu     on a machine with a GPU: five minutes of smoke, kernel tests and speed, into RESULTS/results.tgz;
#              with FULL=1 everything, which takes hours
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
DEMO_ARGS ?=
TEST_ARGS ?=

BENCH_ARGS ?=
STUDY_ARGS ?=
RESULTS ?= .
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)

.PHONY: demo test bench study gpu clean

demo: $(INSTALLED)
	$(RUN) -m bench.demo $(DEMO_ARGS)

# two processes: the interpreter is not thread-safe, and a GPU is shared
test: $(INSTALLED)
	$(RUN) -m pytest -n 2 --timeout 300 $(TEST_ARGS)

bench: $(INSTALLED)
	$(RUN) -m bench $(BENCH_ARGS)

study: $(INSTALLED)
	$(RUN) -m bench.study $(STUDY_ARGS)

# uninstalled and offline, with the machine's own torch and triton
gpu:
	$(PYTHON) -m bench gpu --out $(RESULTS) $(addprefix --commit ,$(COMMIT)) $(if $(FULL),--full)

# Debian's python3 may come without the part that puts pip into a new environment, but with a pip of its own
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV) || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
