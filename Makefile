# `make demo` and `make test` need only Python (3.10 or newer) and make; the first call builds .venv.
PYTHON ?= python3
VENV := .venv
VENV_TF4 := .venv-tf4
VENV_WHEEL := .venv-wheel
VENV_NEW := .venv-new
# One thread per process: the test suite runs two processes.
RUN := OMP_NUM_THREADS=1

.PHONY: help demo test test-tf4 docs bench endurance lint format wheel-test newcomer clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        one edit stream through MEMIT and AlphaEdit, each plain and with NAS"
	@echo "make test        the test suite; ARGS=--cov adds which lines it runs"
	@echo "make test-tf4    the test suite on the oldest supported transformers"
	@echo "make docs        the documentation as a site, into site/; a warning is an error"
	@echo "make bench       measured ratios against the references, into benchmarks/results (hours; see benchmarks/README.md)"
	@echo "make endurance   2,000 edits killed five times against the same uninterrupted, bit for bit (some ten minutes)"
	@echo "make lint        style and types"
	@echo "make format      rewrite the files in the house style"
	@echo "make wheel-test  build the wheel, install it in an empty environment, check what it carries"
	@echo "make newcomer    a newcomer's path in an environment of its own: EasyEdit, 100 edits, export, read again"
	@echo "make clean       remove environments and build products"

demo: $(VENV)/.installed
	$(VENV)/bin/nas-edit demo

test: $(VENV)/.installed
	$(RUN) $(VENV)/bin/python -m pytest -n 2 $(ARGS)

test-tf4: $(VENV_TF4)/.installed
	$(RUN) $(VENV_TF4)/bin/python -m pytest -n 2

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

bench: $(VENV)/.installed
	$(RUN) $(VENV)/bin/python -m benchmarks

endurance: $(VENV)/.installed
	$(RUN) $(VENV)/bin/python -m benchmarks.endurance

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# -I keeps the source checkout off sys.path, so that only the installed wheel can be found.
wheel-test: constraints.txt constraints-common.txt
	rm -rf $(VENV_WHEEL) dist
	$(PYTHON) -m venv $(VENV_WHEEL)
	$(VENV_WHEEL)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(VENV_WHEEL)/bin/python -m pip install --quiet -c constraints.txt dist/nas_plugin-*.whl
	$(VENV_WHEEL)/bin/python -I tests/wheel_check.py

# What someone does who has never seen the project; from the wheel, with EasyEdit's beside it.
newcomer: wheel-test
	rm -rf $(VENV_NEW)
	$(PYTHON) -m venv $(VENV_NEW)
	$(VENV_NEW)/bin/python -m pip install --quiet -c constraints.txt "$$(ls dist/nas_plugin-*.whl)[peft]"
	$(VENV_NEW)/bin/python -m pip install --quiet --no-deps easyeditor==0.0.1.dev0
	$(VENV_NEW)/bin/python -I tests/newcomer.py

# EasyEdit's wheel pins versions that cannot be installed any more, hence --no-deps.
$(VENV)/.installed: PINS := constraints-docs.txt
$(VENV)/.installed: EXTRAS := dev,docs
$(VENV_TF4)/.installed: PINS := constraints-tf4.txt
$(VENV_TF4)/.installed: EXTRAS := dev
$(VENV)/.installed: constraints.txt constraints-docs.txt
$(VENV_TF4)/.installed: constraints-tf4.txt
$(VENV)/.installed $(VENV_TF4)/.installed: pyproject.toml constraints-common.txt
	@echo "building $(@D): a few minutes, once"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -c $(PINS) torch==2.13.0
	$(@D)/bin/python -m pip install --quiet -c $(PINS) -e '.[$(EXTRAS)]'
	$(@D)/bin/python -m pip install --quiet --no-deps easyeditor==0.0.1.dev0
	touch $@

clean:
	rm -rf $(VENV) $(VENV_TF4) $(VENV_WHEEL) $(VENV_NEW) dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nas_plugin tests -name __pycache__ -type d -prune -exec rm -rf {} +
