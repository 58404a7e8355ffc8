# make demo    set everything up and run the main job
# make test    set everything up and run the tests
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
DEMO_ARGS ?=
TEST_ARGS ?=

.PHONY: demo test clean

demo: $(INSTALLED)
	$(RUN) -m bench.demo $(DEMO_ARGS)

# two processes: the interpreter is not thread-safe, and a GPU is shared
test: $(INSTALLED)
	$(RUN) -m pytest -n 2 --timeout 300 $(TEST_ARGS)

# Debian's python3 may come without the part that puts pip into a new environment, but with a pip of its own
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV) || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install pip; }
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
