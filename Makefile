# Every target sets up .venv by itself, and does nothing when it is up to date.
PYTHON ?= python3
RESULTS_DIR ?= results
export RESULTS_DIR
# What others put there, ROS its plugins of pytest, is not for the Python of .venv.
unexport PYTHONPATH PYTHONSAFEPATH
# Tests at a time; 0: one after the other, in one process.
PROCESSES ?= 2
PY := .venv/bin/python
READY := .venv/.installed

.PHONY: env quickstart test lint style docs lock report page check-results

env: $(READY)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo 'Python 3.11 or 3.12 is needed: make PYTHON=python3.11 $(MAKECMDGOALS)'; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(PY) -m pip install --quiet --upgrade uv
	@echo 'Installing the packages of requirements.txt (llama-cpp-python is compiled: some minutes the first time)'
	$(PY) -m uv pip install --python $(PY) -r requirements.txt
	@touch $@

# Every experiment, far too short for numbers to keep, and the charts of them.
quickstart: $(READY)
	$(PY) run_all.py --minutes=8 --data=synthetic --results_dir=quickstart
	@$(MAKE) --no-print-directory report RESULTS_DIR=quickstart

# The notebook, run from top to bottom: charts into $(RESULTS_DIR), and a page that shows them all.
report: $(READY)
	@mkdir -p "$$RESULTS_DIR" 2>/dev/null && test -w "$$RESULTS_DIR" || \
		{ echo "RESULTS_DIR=$$RESULTS_DIR cannot be written: name another folder"; exit 1; }
	@sockets=$$(mktemp -d) && trap 'rm -rf "$$sockets"' EXIT && \
		$(PY) -m nbconvert --to html --no-input --execute plot_results.ipynb \
		--output-dir="$$RESULTS_DIR" --output=report --log-level=ERROR \
		--KernelManager.transport=ipc --KernelManager.ip="$$sockets/kernel"
	@echo "Charts: $$RESULTS_DIR/*.png"
	@echo "Report: $$RESULTS_DIR/report.html"

# One file for all machines, to open or to put on any static host.
page: $(READY)
	$(PY) -m reporting.page "$$RESULTS_DIR"

check-results: $(READY)
	$(PY) check_results.py "$$RESULTS_DIR"

test: $(READY)
	$(PY) -m pytest --numprocesses=$(PROCESSES) --dist=loadfile

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

style: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The table of columns in docs/numbers.md, from harness/columns.py.
docs: $(READY)
	$(PY) -m reporting.columns_table

# The universal lock: MACOSX_DEPLOYMENT_TARGET because torch's macOS wheels need macOS 14.
lock: $(READY)
	MACOSX_DEPLOYMENT_TARGET=14.0 $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--no-emit-index-url --no-header requirements.in -o requirements.txt
