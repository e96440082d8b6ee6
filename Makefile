# make test   the tests: pytest, nbval on the notebooks, ruff
# make book   re-executes the notebooks that changed and builds the book into _build/html
# make bench  time and memory of the losses and of training, into benchmarks/records
# All make the environment (.venv) themselves; PYTHON names the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
EXECUTED := $(NOTEBOOKS:notebooks/%.ipynb=_build/executed/%)

.PHONY: test book bench clean

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest

book: .venv/installed $(EXECUTED)
	$(BIN)/jupyter-book build . -n -W --keep-going

bench: .venv/installed
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/training.py

# A notebook is executed in place, with its default parameters and trained afresh.
_build/executed/%: notebooks/%.ipynb $(shell find patlib study -name '*.py' -o -name '*.json') | .venv/installed
	rm -rf notebooks/runs/demo
	$(BIN)/python book/execute.py $<
	mkdir -p $(@D) && touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[book,test]"
	touch $@

clean:
	rm -rf _build notebooks/runs/demo .venv
