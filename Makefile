# make quickstart   data, three trainings, tests of the trained models and images of their predictions, on the CPU
# make test         every test
# make lint         ruff, mypy and codespell
# make docs         the documentation, docs/_build/html/index.html; a warning is an error
# make env          only the environment, which the others make when it is missing
# make clean        caches and build products; trained models, data and environments stay
# Variables: STACK=onedl (default) or openmmlab, MMCV_OPS=torchvision (default) or compiled, VENV=.venv, JOBS=4 (processes
# that test); see tools/setup_env.sh for the rest.

STACK ?= onedl
MMCV_OPS ?= torchvision
JOBS ?= 4
VENV ?= .venv
PYTHON_BIN = $(abspath $(VENV))/bin/python

.PHONY: env quickstart test lint docs clean

env:
	@STACK='$(STACK)' MMCV_OPS='$(MMCV_OPS)' VENV='$(abspath $(VENV))' bash tools/setup_env.sh

quickstart: env
	$(PYTHON_BIN) tools/quickstart.py

test: env
	OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest tests -q -rs --durations=10 -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: env
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m mypy
	$(PYTHON_BIN) -m codespell_lib

docs: env
	$(PYTHON_BIN) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo 'Built docs/_build/html/index.html'

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis docs/_build docs/repository
	find pelk_mm tools tests configs -name __pycache__ -type d -prune -exec rm -rf {} +
