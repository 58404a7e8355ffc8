# make demo    set everything up and run the main job
# make test    set everything up and run the tests that take minutes: on compiled code, then in the interpreter
# make test-all       all tests: every dtype, every planted bug, code for other GPUs, the newest torch; an hour
# make test-planted   the planted bugs alone, each of which tests must find
# make lint    set everything up and check style, layout and types
# make docs    set everything up and build the documentation into build/docs, offline
# make bench   set everything up and show what this machine can count or time
# make hub     set everything up and write the layers for Hugging Face's kernels into HUB, a folder
# make study   set everything up and run the experiments on normalisation and regularisation
# make gpu     on a machine with a GPU: five minutes of smoke, kernel tests and speed, into RESULTS/results.tgz;
#              with FULL=1 everything, which takes hours
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
DEMO_ARGS ?=
TEST_ARGS ?=
CONSTRAINTS ?= constraints.txt
# two processes: the interpreter is not thread-safe, and a GPU is shared
PYTEST := $(RUN) -m pytest -n 2 --timeout 300
BENCH_ARGS ?=
HUB ?= build/hub
HUB_ARGS ?=
STUDY_ARGS ?=
RESULTS ?= .
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)

.PHONY: demo test test-all test-planted lint docs bench hub study gpu clean

demo: $(INSTALLED)
	$(RUN) -m bench.demo $(DEMO_ARGS)

test: $(INSTALLED)
	failed=0; \
	NORMREG_CPU_KERNELS=compiled $(PYTEST) -m compiled $(TEST_ARGS) || failed=$$?; \
	NORMREG_CPU_KERNELS=interpreter $(PYTEST) -m "not compiled and not planted" $(TEST_ARGS) || failed=$$?; \
	exit $$failed

test-planted: $(INSTALLED)
	$(PYTEST) --all -m planted $(TEST_ARGS)

# what a GPU would run, on compiled code for three; what is compiled, in the interpreter, which refuses stray accesses;
# and the newest torch, in an environment of its own
test-all: $(INSTALLED)
	$(MAKE) test TEST_ARGS=--all
	$(MAKE) test-planted
	NORMREG_CPU_KERNELS=interpreter $(PYTEST) --all -m compiled
	for arch in 80 90 100; do \
		NORMREG_LAB_ARCH=$$arch NORMREG_CPU_KERNELS=compiled $(PYTEST) --all -m gpu || exit; done
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null

docs: $(INSTALLED)
	$(RUN) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/docs
	@echo "open build/docs/index.html"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m mypy

bench: $(INSTALLED)
	$(RUN) -m bench $(BENCH_ARGS)

hub: $(INSTALLED)
	$(RUN) -m normreg.hub --out $(HUB) $(HUB_ARGS)

study: $(INSTALLED)
	$(RUN) -m bench.study $(STUDY_ARGS)

# uninstalled and offline, with the machine's own torch and triton
gpu:
	$(PYTHON) -m bench gpu --out $(RESULTS) $(addprefix --commit ,$(COMMIT)) $(if $(FULL),--full)

# pip 25.1 is the first with --group, and tells of what setuptools warns for every editable install.
# timm without torchvision, which the package index has for torch's builds for GPUs alone.
# Debian's python3 may come without the part that puts pip into a new environment, but with a pip of its own
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV) || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(RUN) -m pip install --quiet --constraint $(CONSTRAINTS) --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' $(RUN) -m pip install --quiet --constraint $(CONSTRAINTS) \
		--editable . $(addprefix --group ,test bench docs)
	$(RUN) -m pip install --quiet --constraint $(CONSTRAINTS) --no-deps 'timm; python_version >= "3.11"'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
