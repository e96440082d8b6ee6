# make test   the tests: pytest, nbval on the notebooks, ruff
# make book   re-executes the notebooks that changed and builds the book into _build/html
# make pdf    the book as one PDF, _build/patlib.pdf, from the stored outputs; needs Chromium
# make bench  time and memory of the losses, of training and of prediction, into benchmarks/records
# make chaos  the long form of the tests that inject faults: kills, full disks, power losses, flipped
#             bits, extreme numbers, random parameters
# All make the environment (.venv) themselves; PYTHON names the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test book pdf bench chaos clean

# One worker a core. The tests of a file, and the cells of a notebook, run in order on one of them.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# What a killed run leaves behind, a lock or half a result, does not stop the next one. All pages are
# written anew: that takes seconds, and a warning shows only on a page that is.
book: .venv/installed
	$(BIN)/snakemake -s book/Snakefile --cores 2 --nolock --rerun-incomplete --keep-going --quiet all
	$(BIN)/python book/first_page.py
	$(BIN)/jupyter-book build . --all -n -W --keep-going

pdf: .venv/installed
	$(BIN)/jupyter-book build . -q --builder custom --custom-builder singlehtml
	$(BIN)/python book/pdf.py

bench: .venv/installed
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/figure6.py

chaos: .venv/installed
	PATLIB_CHAOS=1 $(BIN)/pytest -n logical --dist loadfile tests/test_bits.py tests/test_killed.py \
	    tests/test_crashes.py tests/test_numbers.py tests/test_bad_parameters.py

# The variable, unlike the option --constraint, takes the place of constraints that pip's own
# configuration may name: two exact versions of one package cannot both be installed.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable ".[all]"
	touch $@

clean:
	rm -rf _build .snakemake notebooks/runs/demo .venv
