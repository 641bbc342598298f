# make run    set up .venv and run the default study in packs
# make test   set up .venv with the test extras and run the tests that take minutes together
# make test-all   the rest: a real SLURM, kills, every command of the documentation, long chains; takes root;
#                 PART=0/4 runs a quarter of them
# make docs   set up .venv with the docs extras and write the documentation into site/
# make reference   write docs/options.md and docs/configuration.md anew from the code
# make notebooks   run the notebooks in docs/notebooks again, in place
# make dist   build the tagged release into dist/, and check it
# make bench  measure everything again, which takes long; writes benchmarks/RESULTS.md
# make soak   fuzz with many more inputs, kill at many more points; SEED=N for others
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
PART ?= 0/1
IN_PARALLEL := -n 2 --dist worksteal --durations=30

.PHONY: run test test-all docs reference notebooks dist bench soak lint clean

run: $(VENV)/.run
	$(BIN)/python flows/packed.py --pack 64

test: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'not slow'

test-all: $(VENV)/.test
	LAMBDA_HAT_PART=$(PART) $(BIN)/python -m pytest $(IN_PARALLEL) -m slow

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html (its search needs a server: $(BIN)/python -m http.server -d site)"

reference: $(VENV)/.run
	$(BIN)/python -m docs.hooks.reference

notebooks: $(VENV)/.test
	@# A notebook writes into the folder where it lies.
	for notebook in docs/notebooks/*.ipynb; do \
	  folder=$$(mktemp -d) && cp $$notebook $$folder && \
	  $(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
	  $$folder/*.ipynb && cp $$folder/*.ipynb docs/notebooks/ && rm -r $$folder || exit 1; done

dist: $(VENV)/.test
	$(BIN)/python .ci/release.py

bench: $(VENV)/.test
	$(BIN)/python benchmarks/bench.py

soak: $(VENV)/.test
	LAMBDA_HAT_SOAK=1 LAMBDA_HAT_SEED=$(SEED) $(BIN)/python -m pytest --hypothesis-seed=$(SEED) tests/fuzz tests/faults

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright -p pyproject.toml

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lambda_hat needs Python 3.11 or newer, $(PYTHON) is older or missing: make PYTHON=/path/to/python3.11"; exit 1; }
	@# Debian keeps venv's pip in a package of its own (python3-venv); a pip beside the interpreter does as well.
	@$(PYTHON) -m venv $(VENV) >$(VENV).log 2>&1 || \
	  { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV) install -q pip; } >>$(VENV).log 2>&1 || \
	  { cat $(VENV).log; rm -rf $(VENV) $(VENV).log; \
	    echo "no virtual environment could be made: apt install python3-venv, or make PYTHON=another interpreter"; exit 1; }
	@rm -f $(VENV).log

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[mpi]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $(VENV)/.run $(VENV)/.docs $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[mpi,docs]'
	@touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) dist site
