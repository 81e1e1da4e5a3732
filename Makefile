# Two entry points, each from a bare clone: `make quickstart` and `make test`.
# They need git, make, python3.11 and a package index; nothing else is fetched.

PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
# Twice as many as cores: the longest tests wait for clusters and servers.
WORKERS ?= $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN))

export HF_HUB_OFFLINE ?= 1
# Also where it is set: every command, worker and test process would compile all sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test slow quantized lint clean

quickstart: $(INSTALLED)
	$(BIN)/mept run search_spaces/quickstart.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Not in requirements.lock: every process that imports PEFT would import it, for a second and a half.
quantized: $(INSTALLED)
	$(BIN)/python -m pip install --quiet bitsandbytes==0.50.2
	$(BIN)/python -m pytest tests/test_quantized.py

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv runs
