# Every target sets up .venv by itself, and does nothing when it is up to date.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.installed

.PHONY: env quickstart test lint style lock

env: $(READY)

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo 'Python 3.11 or 3.12 is needed: make PYTHON=python3.11 $(MAKECMDGOALS)'; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --upgrade uv
	@echo 'Installing the packages of requirements.txt (llama-cpp-python is compiled: some minutes the first time)'
	$(PY) -m uv pip install --python $(PY) -r requirements.txt
	@touch $@

# This experiment, briefly, on synthetic data.
quickstart: $(READY)
	$(PY) pytorch_test_computer_vision_cifar100.py --epochs=1 --batch_sizes="32, 64" --max_seconds=10 --data=synthetic

test: $(READY)
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

style: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The universal lock: MACOSX_DEPLOYMENT_TARGET because torch's macOS wheels need macOS 14.
lock: $(READY)
	MACOSX_DEPLOYMENT_TARGET=14.0 $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--no-emit-index-url --no-header requirements.in -o requirements.txt
