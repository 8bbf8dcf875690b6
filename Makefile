# One entry for people and CI. Every target sets up what it needs; ARGS is passed on:
#   make serve ARGS="--port 9000"      make test ARGS="-m 'not system'"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: serve test gpu-check check audit docs install format clean

serve: $(VENV)/.installed        ## start the server with the bundled model
	$(BIN)/trimvit serve $(ARGS)

test: $(VENV)/.installed-dev     ## run the tests; a file's tests stay in one of two processes, slow files first
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

gpu-check:                       ## tests, speed and a verdict on an NVIDIA GPU; installs nothing (ARGS=--help explains)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu_check $(ARGS)

check: $(VENV)/.installed-dev    ## format, lint, types, import contracts, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

audit: $(VENV)/.installed-dev    ## known vulnerabilities of what is installed; asks the network
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/installed.txt $(ARGS)

docs: $(VENV)/.installed-dev     ## the documentation as a site in build/site; links are checked
	$(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

install: $(VENV)/.installed-dev  ## everything for development

format: $(VENV)/.installed-dev   ## rewrite the code in its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:                           ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("TrimViT needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'  # only what is imported is compiled, then
	touch $(VENV)/.installed $@
