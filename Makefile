# Two commands: `make run` and `make test`. Both set up .venv first; the second time that is instant.
# Variables: PYTHON (default python3), DATA_ROOT (a folder that holds data sets; see data/README.md).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
REQUIREMENTS := requirements.txt requirements-dev.txt constraints.txt
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
QUICK := $(patsubst %,tests/test_%.py, repository config models norm_pool augment data evaluate \
	intervals conclusions convolution findings stated text)

.PHONY: help run report test test-quick lint check-bounds publish clean

help:
	@echo "make run    run the notebooks on the embedded data; results in runs/"
	@echo "make report put all that runs/ holds on one page: runs/report/report.html"
	@echo "make test   run all tests and every notebook"
	@echo "make test-quick        the tests without kernels and kills, in about a minute"
	@echo "make lint   check the style of the code"
	@echo "make check-bounds      test the oldest and the newest versions that are allowed (10 GB)"
	@echo "make publish REPO=a/b  write this repository's address into notebooks and README"
	@echo "make clean  remove the environment and the caches; runs/ and data/ stay"

run: $(READY)
	@mkdir -p runs/notebooks
	@$(BIN)/python -m helpers.report.batch experiments/r*.yaml --rows "count*"
	@set -e; for notebook in $(NOTEBOOKS); do \
		echo "$$notebook"; \
		$(BIN)/papermill --kernel python3 $$notebook runs/$$notebook; \
	done
	@$(BIN)/python -m helpers.report.notebooks $(NOTEBOOKS:%=runs/%)
	@echo "Executed notebooks, as pages for the browser, too: runs/notebooks/"
	@echo "The report, one file for the browser: runs/report/report.html"
	@echo "Runs, each with its configuration, history, metrics and weights: runs/"

report: $(READY)
	$(BIN)/python -m helpers.report

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/tests/offline" $(BIN)/python -m pytest --nbmake \
		--nbmake-timeout=600 --timeout=0 -n 2 --maxschedchunk=1 --durations=9 $(NOTEBOOKS)

test-quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(QUICK)

lint: $(READY)
	$(BIN)/ruff check

check-bounds: $(READY)
	$(BIN)/python tests/check_bounds.py

publish:
	@test '$(origin REPO)' != undefined || { echo 'make publish REPO=owner/name, or REPO= for none'; exit 1; }
	$(PYTHON) notebooks/publish.py $(REPO)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; point to one with: make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing; the first time downloads torch and takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-r requirements.txt -r requirements-dev.txt -c constraints.txt
	@# On all cores; some packages hold files for other versions of Python, which is no failure.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib 2>/dev/null || true
	@# Else each kernel warns that its local connection is not encrypted.
	@mkdir -p .venv/etc/ipython
	@echo 'c.IPKernelApp.log_level = "ERROR"' > .venv/etc/ipython/ipython_kernel_config.py
	@touch $@
